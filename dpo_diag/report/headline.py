"""What stands at the top: the verdict, its paragraph, and the four numbers that a reader takes away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dpo_diag.records import Run
from dpo_diag.records.metrics import wilson_interval
from dpo_diag.report.displays.curves import score_name
from dpo_diag.report.numbers import number, percent, signed
from dpo_diag.report.text import capital

HAPPENED, CHANGE = "What happened", "What to change"
"""Headings of the narrative that have a place of their own in the page."""
HARM = {
    "harmful": ("Harmful", "bad"),
    "benign": ("Benign", "good"),
    "none": ("No harm seen", "good"),
    "cannot_tell": ("Cannot tell from likelihoods alone", "open"),
}


@dataclass(frozen=True)
class Fact:
    """One of the numbers: its name, from and to, and what to know about it."""

    name: str
    before: str
    after: str
    note: str
    kind: str


@dataclass(frozen=True)
class Told:
    """One part of the explanation's narrative."""

    heading: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """The top of the page as text."""

    run: str
    subtitle: str
    label: str
    harm: str
    style: str
    confidence: str
    text: str
    facts: tuple[Fact, ...]
    happened: str
    told: tuple[Told, ...]


def headline(run: Run, explanation: dict[str, Any]) -> Headline:
    """From the explanation's verdict and the run's history; what is unknown is left out, never guessed."""
    verdict = explanation.get("verdict") or {}
    harm, style = HARM.get(str(verdict.get("harm")), ("No verdict", "open"))
    title = capital(str(verdict.get("title") or verdict.get("label") or "No verdict").replace("_", " "))
    text = str(verdict.get("text") or "").removeprefix(f"{title}. ")  # the title stands above it
    parts = narrative(explanation)
    if not text and explanation.get("not_applicable"):
        text = f"Not applicable: {explanation['not_applicable']}."
    steps = [explanation.get("from_step"), explanation.get("to_step")]
    between = f"step {steps[0]} to {steps[1]}" if None not in steps else ""
    n = explanation.get("n_pairs")
    subtitle = [
        run.info.kind,
        run.info.model.name or "",
        between,
        f"split {explanation['split']}" if explanation.get("split") else "",
        f"{n} pairs" if n else "",
        (run.info.created or "")[:10],
        "" if run.info.status in (None, "finished") else str(run.info.status),
    ]
    confidence = verdict.get("confidence")
    return Headline(
        run=run.path.name if run.path.name else str(run.path),
        subtitle=" · ".join(s for s in subtitle if s),
        label=title,
        harm=harm,
        style=style,
        confidence=percent(confidence) if isinstance(confidence, (int, float)) else str(confidence or ""),
        text=text,
        facts=tuple(facts(run, explanation)),
        happened=" ".join(s for t in parts if t.heading == HAPPENED for s in t.sentences),
        told=tuple(t for t in parts if t.heading not in (HAPPENED, CHANGE)),
    )


def narrative(explanation: dict[str, Any]) -> list[Told]:
    """The explanation's narrative, without what the verdict says already."""
    verdict = str((explanation.get("verdict") or {}).get("text") or "")
    found = []
    for block in explanation.get("narrative") or []:
        sentences = [str(s.get("text", "")) for s in block.get("sentences") or []]
        kept = tuple(s for s in sentences if s and s != verdict)
        if kept:
            found.append(Told(str(block.get("heading", "")), kept))
    return found


def facts(run: Run, explanation: dict[str, Any]) -> list[Fact]:
    """Loss, chosen perplexity, share of pairs whose chosen answer fell, first task score: each from → to."""
    found = []
    loss = explanation.get("loss") or {}
    if loss.get("from") is not None and loss.get("to") is not None:
        found.append(Fact("loss", number(loss["from"]), number(loss["to"]), signed(loss["to"] - loss["from"]), "loss"))
    chosen = (explanation.get("perplexity") or {}).get("chosen") or {}
    name = next((p for p in ("ppl_seq_mean", "ppl_token", "ppl_seq_geomean") if isinstance(chosen.get(p), dict)), None)
    if name and chosen[name].get("from") is not None:
        values = chosen[name]
        found.append(
            Fact(
                "chosen perplexity",
                number(values["from"]),
                number(values["to"]),
                f"{name}, log {signed(values['dlog'])}",
                "chosen",
            )
        )
    found.extend(_scores(run, explanation)[:2])
    quadrants = explanation.get("quadrants") or {}
    both = quadrants.get("both_fell")
    if isinstance(both, (int, float)) and math.isfinite(both):
        fell = both + quadrants.get("rejected_rose", 0.0)
        found.append(
            Fact("pairs whose chosen answer fell", "", percent(fell), f"{percent(both)} fell on both sides", "rejected")
        )
    return found


def _scores(run: Run, explanation: dict[str, Any]) -> list[Fact]:
    history = run.history
    rows = history.loc[history["name"].str.startswith("score/") & history["value"].notna()]
    out = []
    for (name, split), part in rows.groupby(["name", "split"], sort=False):
        at = part.set_index("step")
        first = at["value"].get(explanation.get("from_step"), at["value"].iloc[0])
        last_step = explanation.get("to_step") if explanation.get("to_step") in at.index else at.index[-1]
        last, n = float(at["value"].loc[last_step]), at["weight"].loc[last_step]
        note = ""
        if n and math.isfinite(n):
            low, high = wilson_interval(last * n, int(n))
            note = f"n {int(n)}, 95 % {number(low, 3)} to {number(high, 3)}"
        out.append(Fact(score_name(str(name), str(split)), number(first, 3), number(last, 3), note, "score"))
    return out
