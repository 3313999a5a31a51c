"""One page for a tired reader: what happened, how sure, why, which pairs, what to change, in that order.

Every sentence is made from numbers of the explanation and says which (`from`: the document's keys), so that a reader
can look them up; nothing is said that no number supports. Text of pairs is model or user text: control characters are
escaped, so that a terminal shows them and never obeys them.
"""

from __future__ import annotations

import math
from typing import Any

from dpo_diag.diagnosis.narrative_why import why
from dpo_diag.diagnosis.pair_rows import REFERENCE
from dpo_diag.diagnosis.wording import (
    Sentence,
    capital,
    escape_text,
    interval,
    moved,
    number,
    percent,
    say,
    uncertain,
)
from dpo_diag.records import Run

HEADINGS = ("What happened", "How sure", "Why", "Which pairs", "What to change")
WEIGHING = {
    "ppl_token": "with every token weighing the same (ppl_token)",
    "ppl_seq_geomean": "with every answer weighing the same (ppl_seq_geomean)",
    "ppl_seq_mean": "as the mean of the answers' perplexities (ppl_seq_mean)",
}
ANSWERED_BY_REMEDIES = frozenset({"DVG001", "DVG002", "DVG003", "DVG004", "DVG012", "DVG018", "DVG019", "DVG025"})
"""Checks whose advice the remedies give with this run's numbers: not told twice."""


def narrate(document: dict[str, Any], run: Run | None = None) -> list[dict[str, Any]]:
    """[{"heading", "sentences": [{"text", "from": [keys]}]}] in the order of HEADINGS; `run` supplies pair texts."""
    sections = (
        _what_happened(document),
        _how_sure(document),
        why(document),
        _which_pairs(document, run),
        _what_to_change(document),
    )
    return [{"heading": h, "sentences": s} for h, s in zip(HEADINGS, sections, strict=True)]


def render(narrative: list[dict[str, Any]]) -> str:
    """The narrative as plain text."""
    blocks = []
    for section in narrative:
        lines = [section["heading"]]
        lines += [f"  {s['text']}" for s in section["sentences"]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _what_happened(document: dict[str, Any]) -> list[Sentence]:
    start = document["from_step"]
    steps = f"{'the reference' if start == REFERENCE else f'step {start}'} and step {document['to_step']}"
    where = f"Between {steps} on {document['split']}"
    if document["n_pairs"] is not None:
        where += f" ({document['n_pairs']} pairs)"
    loss = document["loss"]
    if loss.get("from") is not None:
        said = [say(f"{where} the loss {moved(loss['from'], loss['to'])}.", "loss.from", "loss.to")]
    else:
        said = [say(f"{where}: the loss is not known ({loss.get('not_applicable')}).", "loss")]
    said += _perplexities(document)
    said += _turns(document)
    quadrants = document["quadrants"]
    if "both_fell" in quadrants:
        said.append(
            say(
                f"Both answers became less likely in {percent(quadrants['both_fell'])} of the pairs, only the rejected "
                f"one in {percent(quadrants['chosen_rose'])}, only the chosen one in "
                f"{percent(quadrants['rejected_rose'])}, neither in {percent(quadrants['both_rose'])}.",
                "quadrants",
            )
        )
    said += _rewards(document)
    return [*said, say(document["verdict"]["text"], "verdict")]


def _perplexities(document: dict[str, Any]) -> list[Sentence]:
    chosen = document["perplexity"].get("chosen", {})
    names = [n for n in WEIGHING if n in chosen]
    if not names:
        reason = document["perplexity"].get("not_applicable")
        return [say(f"Perplexity: {reason}.", "perplexity")] if reason else []
    unit = " per byte" if document.get("unit") == "byte" else ""
    ways = {moved(chosen[n]["from"], chosen[n]["to"]).split()[0] for n in names}
    if len(ways) == 1 and len(names) > 1:
        numbers = ", ".join(f"{n} {number(chosen[n]['from'])} → {number(chosen[n]['to'])}" for n in names)
        text = f"The chosen answers' perplexity{unit} {ways.pop()} whichever way it is averaged: {numbers}."
        return [say(text, "perplexity.chosen")]
    parts = [f"{moved(chosen[n]['from'], chosen[n]['to'])} {WEIGHING[n]}" for n in names]
    said = [say(f"The chosen answers' perplexity{unit} {'; '.join(parts)}.", "perplexity.chosen")]
    if {math.copysign(1, chosen[n]["dlog"]) for n in names if chosen[n]["dlog"]} == {1.0, -1.0}:
        text = "So whether perplexity rose depends on how answers are averaged: one number would mislead."
        said.append(say(text, "perplexity.chosen"))
    return said


def _turns(document: dict[str, Any]) -> list[Sentence]:
    """Turning points in one sentence per step at which something turned, the largest first."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for turn in sorted(document.get("turning_points", []), key=lambda t: -float(t["worse_by"])):
        by_step.setdefault(turn["step"], []).append(turn)
    said = []
    for step, turns in by_step.items():
        first = turns[0]
        known = first["loss_from"] is not None and math.isfinite(first["loss_from"])
        loss = f" the loss still fell {number(first['loss_from'])} → {number(first['loss_to'])}, while" if known else ""
        moves = ", ".join(
            f"chosen {'mean log-prob' if t['quantity'] == 'sum_logp' else t['quantity']} {moved(t['from'], t['to'])}"
            for t in turns
        )
        text = f"On the way it turned: from step {step} to {first['to_step']}{loss} {moves}."
        said.append(say(text, "turning_points"))
    return said


def _rewards(document: dict[str, Any]) -> list[Sentence]:
    """Logged mean rewards of a run without pairs, and a dip that came back."""
    values = document.get("means", {}).get("values", {})
    said = []
    for side in ("chosen", "rejected"):
        entry = values.get(f"rewards/{side}") or values.get(f"logps/{side}")
        name = f"rewards/{side}" if f"rewards/{side}" in values else f"logps/{side}"
        if not entry or entry["from"] is None:
            continue
        said.append(say(f"The logged mean {name} {moved(entry['from'], entry['to'])}.", f"means.values.{name}"))
        low = entry.get("lowest")
        if side == "chosen" and low is not None and low < min(entry["from"], entry["to"]):
            depth = min(entry["from"], entry["to"]) - low
            if depth > 0.1 * (entry["highest"] - low):
                text = f"On the way {name} stood as low as {number(low)} (step {entry['lowest_step']}) and came back."
                said.append(say(text, f"means.values.{name}"))
    return said


def _how_sure(document: dict[str, Any]) -> list[Sentence]:
    said = [say(f"Confidence: {document['verdict']['confidence']}.", "verdict.confidence")]
    changes = [("the loss", document["loss"].get("delta"), document["loss"].get("interval"), "loss.interval")]
    chosen = document["perplexity"].get("chosen", {})
    for name in WEIGHING:
        if name in chosen:
            row = chosen[name]
            changes.append((f"log {name}", row["dlog"], row.get("interval"), f"perplexity.chosen.{name}"))
    for name in ("rewards/chosen", "logps/chosen"):
        entry = document.get("means", {}).get("values", {}).get(name)
        if entry:
            changes.append((f"the mean {name}", entry["delta"], entry["interval"], f"means.values.{name}"))
    for what, delta, bounds, key in changes:
        if delta is not None and bounds:
            said.append(say(f"Change of {what} {delta:+.3g} ({interval(bounds)}{uncertain(bounds)}).", key))
    if document["n_pairs"]:
        said.append(say("Intervals are over pairs of this set; another training seed is not in them.", "n_pairs"))
    elif document.get("means", {}).get("windows"):
        text = "Intervals are over logged rows, first against last quarter: every batch has other pairs."
        said.append(say(text, "means.method"))
    for entry in document["evidence"]:
        if entry["delta"] or entry["direction"] != "no_worse":
            said.append(say(f"{entry['text']}: {entry['direction'].replace('_', ' ')}.", "evidence"))
    said += [say(f"{capital(note)}.", "notes") for note in document.get("notes", [])]
    for side, section in document["perplexity"].items():
        if isinstance(section, dict) and section.get("excluded"):
            counts = ", ".join(f"{v['n']} {k}" for k, v in section["excluded"].items())
            said.append(say(f"Left out of the {side} perplexities: {counts}.", f"perplexity.{side}.excluded"))
    return said


def _which_pairs(document: dict[str, Any], run: Run | None) -> list[Sentence]:
    if not document["pairs"]:
        return [say("No pair-level split is possible here.", "pairs")]
    few, said = document.get("concentration"), []
    if few and few["pairs"] is not None:
        word = "rise" if document["perplexity"]["chosen"]["ppl_seq_mean"]["dlog"] > 0 else "fall"
        text = f"{few['pairs']} of {few['of']} pairs carry {percent(few['share'])} of the net {word} of chosen"
        said.append(say(f"{text} ppl_seq_mean.", "concentration"))
    elif few is None:
        said.append(say("The chosen answers that lost most, by log-prob (nothing counts their length):", "pairs"))
    else:
        return [say("No pair moved.", "pairs")]
    texts = run.texts.set_index("pair_id") if run is not None and run.has("texts") else None
    for pair in document["pairs"][:3]:
        if pair.get("share_of_rise") is not None:
            line = f"{percent(pair['share_of_rise'])} of it, chosen cross-entropy "
            line += f"{number(pair['chosen_ce_from'])} → {number(pair['chosen_ce_to'])}"
        else:
            line = f"chosen log-prob {pair['chosen_delta_logp'] or 0.0:+.4g} nats"
        chosen = texts.loc[pair["pair_id"], "chosen"] if texts is not None and pair["pair_id"] in texts.index else None
        quoted = f': "{escape_text(chosen)}"' if isinstance(chosen, str) else ""
        said.append(say(f"{escape_text(str(pair['pair_id']))}: {line}{quoted}", "pairs"))
    return said


def _what_to_change(document: dict[str, Any]) -> list[Sentence]:
    said = []
    if document["verdict"]["harm"] == "cannot_tell":
        text = "First measure: score a task or compare fixed prompts' answers of both checkpoints (dpo-diag outputs)."
        said.append(say(text, "verdict"))
    for remedy in document["remedies"]:
        settings = "; ".join(f"{k}: {v}" for k, v in remedy["settings"].items())
        text = f"{capital(remedy['name'])}: {remedy['why']}; {remedy['do']}."
        said.append(say(text + (f" [{settings}]" if settings else ""), "remedies"))
    for check in document["checks"]:
        if check["outcome"] != "speaks" or (document["remedies"] and check["code"] in ANSWERED_BY_REMEDIES):
            continue
        said += [say(f"{check['code']}: {line.rstrip('.')}.", "checks") for line in check["try"][:2]]
    return said or [say("Nothing here asks for a change.", "verdict")]
