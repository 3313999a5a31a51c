"""What is at the top: the verdict, its paragraph, and the few numbers that a reader takes away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpo_diag.diagnosis.evidence import score_curves
from dpo_diag.diagnosis.logged import score_label
from dpo_diag.diagnosis.pair_intervals import counted
from dpo_diag.diagnosis.said import stretch
from dpo_diag.records.metric_table import label_of
from dpo_diag.report.panels import side_in
from dpo_diag.report.section import Context
from dpo_diag.text import both_ends, capital, interval, number, percent, signed
from dpo_diag.thresholds import defaults

CHANGE = "What to change"
"""The heading of the narrative that has a section of its own."""
HARM = {
    "harmful": ("Harmful", "bad"),
    "benign": ("Benign", "good"),
    "none": ("No harm seen", "good"),
    "cannot_tell": ("Cannot tell from likelihoods alone", "open"),
}
"""The verdict's `harm` -> what the page calls it, and its style."""
LOGGED = ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen")
"""Means of a log among the numbers, where it holds no pairs."""
SCORES = 2
"""Task scores among the numbers."""


@dataclass(frozen=True)
class Fact:
    """One of the numbers: its name, from and to, and what to know about it; `kind` is its colour."""

    name: str
    before: str
    after: str
    note: str
    kind: str


@dataclass(frozen=True)
class Part:
    """One part of the explanation's narrative."""

    heading: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """The top of the page as text: whose run it is, what was set, the verdict, the numbers."""

    run: str
    set: tuple[str, ...]
    about: tuple[str, ...]
    label: str
    harm: str
    style: str
    confidence: str
    text: str
    facts: tuple[Fact, ...]
    details: tuple[Part, ...]


def headline(context: Context) -> Headline:
    """From the explanation's verdict and the run's history; what is unknown is left out, never guessed."""
    document, run = context.document, context.run
    verdict = document.get("verdict") or {}
    harm, style = HARM.get(str(verdict.get("harm")), ("No verdict", "open"))
    if verdict.get("harm") == "cannot_tell" and document.get("evidence"):
        harm = "Cannot tell from what was measured"
    title = capital(str(verdict.get("title") or verdict.get("label") or "No verdict").replace("_", " "))
    text = str(verdict.get("text") or "").removeprefix(f"{title}. ")  # the title is above it
    if not text and document.get("not_applicable"):
        text = f"Not applicable: {document['not_applicable']}."
    parts = narrative(document)
    confidence = verdict.get("confidence")
    return Headline(
        run=run.info.name or run.path.name or str(run.path),
        set=tuple(was_set(context)),
        about=tuple(_about(context)),
        label=title,
        harm=harm,
        style=style,
        confidence=percent(confidence) if isinstance(confidence, (int, float)) else str(confidence or ""),
        text=text,
        facts=tuple(facts(context)),
        details=tuple(part for part in parts if part.heading != CHANGE),
    )


def was_set(context: Context) -> list[str]:
    """What an experiment is told by: loss, beta, learning rate, as far as known."""
    info, history = context.run.info, context.run.history
    names = [*(info.loss.types if info.loss is not None else info.loss_names)]
    lr = info.training.learning_rate
    logged = history.loc[history["name"] == "learning_rate", "value"].max()
    known = [
        f"loss {' + '.join(names)}" if names else f"loss like {info.loss_like}" if info.loss_like else "",
        f"β {info.beta:g}" if info.beta is not None else "",
        f"lr {lr:g}" if lr is not None else f"lr up to {logged:.3g}" if logged > 0 else "",
    ]
    return [piece for piece in known if piece]


def _about(context: Context) -> list[str]:
    """Kind, model, steps, split, pairs, folder, day and an unusual status, as far as known."""
    document, info = context.document, context.run.info
    compared = None not in (document.get("from_step"), document.get("to_step"))
    known = [
        info.kind,
        info.model.name if info.model is not None else "",
        stretch(document) if compared else "",
        f"split {document['split']}" if document.get("split") else "",
        counted(document["n_pairs"], document.get("n_prompts")) if document.get("n_pairs") else "",
        context.run.path.name if info.name not in (None, context.run.path.name) else "",
        str(info.created or "")[:10],
        "" if info.status == "finished" else info.status,
    ]
    return [piece for piece in known if piece]


def narrative(document: Mapping[str, Any]) -> list[Part]:
    """The explanation's narrative, without what the verdict says already."""
    verdict = str((document.get("verdict") or {}).get("text") or "")
    parts = []
    for block in document.get("narrative") or []:
        sentences = [str(s.get("text", "")) for s in block.get("sentences") or []]
        kept = tuple(s for s in sentences if s and s != verdict)
        if kept:
            parts.append(Part(str(block.get("heading", "")), kept))
    return parts


def facts(context: Context) -> list[Fact]:
    """Loss, chosen perplexity, the first task scores, share of pairs whose chosen answer fell: each from → to."""
    document = context.document
    shown = []
    loss = document.get("loss") or {}
    if loss.get("from") is not None and loss.get("to") is not None:
        note = signed(loss["to"] - loss["from"])
        if loss.get("from_is"):
            note = f"{note}, {loss['from_is']} to {loss['to_is']}"
        shown.append(Fact(context.loss_label, number(loss["from"]), number(loss["to"]), note, "loss"))
    chosen = (document.get("perplexity") or {}).get("chosen") or {}
    name = next((p for p in ("ppl_token", "ppl_seq_mean", "ppl_seq_geomean") if isinstance(chosen.get(p), dict)), None)
    if name and chosen[name].get("from") is not None:
        ends, note = chosen[name], f"{name}, log {signed(chosen[name]['dlog'])}"
        shown.append(Fact("chosen perplexity", *both_ends(ends["from"], ends["to"]), note, "chosen"))
    shown += _logged(document)
    shown += _scores(context)
    quadrants = document.get("quadrants") or {}
    both = quadrants.get("both_fell")
    if isinstance(both, (int, float)) and math.isfinite(both):
        fell = percent(both + quadrants.get("rejected_rose", 0.0))
        note = f"{percent(both)} fell on both sides"
        shown.append(Fact("pairs whose chosen answer fell", "", fell, note, "rejected"))
    return shown


def _logged(document: Mapping[str, Any]) -> list[Fact]:
    """Of a run that holds means only, where its rewards and log-probs went."""
    means = document.get("means") or {}
    values, shown = means.get("values") or {}, []
    for name in LOGGED:
        ends = values.get(name)
        if ends is None or name in means["withheld"] or None in (ends["from"], ends["to"]):
            continue
        both = both_ends(ends["from"], ends["to"], 3)
        shown.append(Fact(label_of(name), *both, signed(ends["delta"]), side_in(name) or "loss"))
    return shown


def _scores(context: Context) -> list[Fact]:
    """The first scores as the explanation compares them, with its interval; one measured once by its value."""
    compared = {(e["what"], e["split"]): e for e in context.document.get("evidence") or [] if e["kind"] == "score"}
    shown = []
    for curve in score_curves(context.run)[:SCORES]:
        entry = compared.get((curve.name, curve.split))
        if entry is not None:
            before, after = entry["from"], entry["to"]
            kind = f"{'paired' if entry['paired'] else 'unpaired'} " if entry["interval"] else ""
            note = (
                f"{signed(entry['delta'])}, {kind}{interval(entry['interval'], entry['level'])}, n {entry['n'] or '?'}"
            )
        else:
            before = after = float(curve.values[-1])
            share = curve.value_at(-1, defaults())
            note = f"n {share.n}, {interval(share.bounds, share.level, number)}" if curve.is_proportion else ""
        shown.append(Fact(score_label(curve.name, curve.split), *both_ends(before, after, 3), note, "score"))
    return shown
