"""One page for a tired reader: what happened, how sure, why, which pairs, what to change, in that order.

Every sentence is made from numbers of the explanation and says which (`from`: the document's keys), so that a reader
can look them up; nothing is said that no number supports. Text of pairs is model or user text: control characters are
escaped, so that a terminal shows them and never obeys them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dpo_diag.divergence.select import REFERENCE
from dpo_diag.divergence.verdict import describe
from dpo_diag.records import Run

Sentence = dict[str, Any]
HEADINGS = ("What happened", "How sure", "Why", "Which pairs", "What to change")
SNIPPET = 160
PERPLEXITY_WORDS = {
    "ppl_token": "every token weighing the same (ppl_token)",
    "ppl_seq_geomean": "every answer weighing the same (ppl_seq_geomean)",
    "ppl_seq_mean": "averaged over answers' perplexities (ppl_seq_mean)",
}


def narrate(document: dict[str, Any], run: Run | None = None) -> list[dict[str, Any]]:
    """[{"heading", "sentences": [{"text", "from": [keys]}]}] in the order of HEADINGS; `run` supplies pair texts."""
    writers: tuple[Callable[[], list[Sentence]], ...] = (
        lambda: _what_happened(document),
        lambda: _how_sure(document),
        lambda: _why(document),
        lambda: _which_pairs(document, run),
        lambda: _what_to_change(document),
    )
    return [{"heading": h, "sentences": w()} for h, w in zip(HEADINGS, writers, strict=True)]


def render(narrative: list[dict[str, Any]]) -> str:
    """The narrative as plain text."""
    blocks = []
    for section in narrative:
        lines = [section["heading"]]
        lines += [f"  {s['text']}" for s in section["sentences"]]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def escape_text(text: str, limit: int = SNIPPET) -> str:
    """Foreign text in one line: control and other unprintable characters as \\xNN or \\uNNNN, cut at `limit`."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def _say(text: str, *keys: str) -> Sentence:
    return {"text": text, "from": list(keys)}


def _number(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _steps(document: dict[str, Any]) -> str:
    start = document["from_step"]
    return f"{'the reference' if start == REFERENCE else f'step {start}'} and step {document['to_step']}"


def _moved(before: float, after: float) -> str:
    if before == after:
        return f"stayed at {_number(before)}"
    return f"{'rose' if after > before else 'fell'} {_number(before)} → {_number(after)}"


def _what_happened(document: dict[str, Any]) -> list[Sentence]:
    said = []
    loss = document["loss"]
    where = f"Between {_steps(document)} on {document['split']}"
    count = f" ({document['n_pairs']} pairs)" if document["n_pairs"] is not None else ""
    if loss.get("from") is not None:
        said.append(_say(f"{where}{count} the loss {_moved(loss['from'], loss['to'])}.", "loss.from", "loss.to"))
    else:
        said.append(_say(f"{where}{count}: the loss is not known ({loss.get('not_applicable')}).", "loss"))
    chosen = document["perplexity"].get("chosen", {})
    unit = f" per {document['unit']}" if document.get("unit") == "byte" else ""
    moves = [
        f"{_moved(chosen[n]['from'], chosen[n]['to'])} {words}" for n, words in PERPLEXITY_WORDS.items() if n in chosen
    ]
    if moves:
        said.append(_say(f"The chosen answers' perplexity{unit} {'; '.join(moves)}.", "perplexity.chosen"))
        signs = {math.copysign(1, chosen[n]["dlog"]) for n in PERPLEXITY_WORDS if n in chosen and chosen[n]["dlog"]}
        if len(signs) == 2:
            said.append(
                _say("So whether perplexity rose depends on how answers are averaged; one number would mislead.",
                     "perplexity.chosen")
            )  # fmt: skip
    elif "not_applicable" in document["perplexity"]:
        said.append(_say(f"Perplexity: {document['perplexity']['not_applicable']}.", "perplexity"))
    for turn in sorted(document.get("turning_points", []), key=lambda t: -t["dlog"]):
        said.append(
            _say(
                f"On the way it turned: from step {turn['step']} to {turn['to_step']} the loss still fell "
                f"{_number(turn['loss_from'])} → {_number(turn['loss_to'])}, while chosen {turn['perplexity']} rose "
                f"{_number(turn['from'])} → {_number(turn['to'])}.",
                "turning_points",
            )
        )
    quadrants = document["quadrants"]
    if "both_fell" in quadrants:
        said.append(
            _say(
                f"Both answers became less likely in {_percent(quadrants['both_fell'])} of the pairs, only the "
                f"rejected one in {_percent(quadrants['chosen_rose'])}, only the chosen one in "
                f"{_percent(quadrants['rejected_rose'])}, neither in {_percent(quadrants['both_rose'])}.",
                "quadrants",
            )
        )
    for name, words in (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")):
        entry = document.get("means", {}).get("values", {}).get(name)
        if entry and entry["from"] is not None:
            said.append(
                _say(f"The mean implicit reward of {words} {_moved(entry['from'], entry['to'])}.", f"means.{name}")
            )
    decision = document["verdict"]
    said.append(_say(decision["text"], "verdict"))
    return said


def _interval(bounds: list[float] | None) -> str:
    return f"95 % interval {bounds[0]:+.3g} to {bounds[1]:+.3g}" if bounds else "no interval"


def _how_sure(document: dict[str, Any]) -> list[Sentence]:
    said = [_say(f"Confidence: {document['verdict']['confidence']}.", "verdict.confidence")]
    loss = document["loss"]
    if loss.get("delta") is not None and loss.get("interval"):
        said.append(_say(f"Change of the loss {loss['delta']:+.4g} ({_interval(loss['interval'])}).", "loss.interval"))
    for name in PERPLEXITY_WORDS:
        row = document["perplexity"].get("chosen", {}).get(name)
        if row and row.get("interval"):
            clear = row["interval"][0] > 0 or row["interval"][1] < 0
            said.append(
                _say(
                    f"Change of log {name}: {row['dlog']:+.3g} ({_interval(row['interval'])}"
                    f"{'' if clear else ': its direction is not certain'}).",
                    f"perplexity.chosen.{name}",
                )
            )
    if document["n_pairs"]:
        said.append(_say("Intervals are over pairs of this set; another training seed is not in them.", "n_pairs"))
    for entry in document["evidence"]:
        said.append(_say(f"{describe(entry)}: {entry['direction'].replace('_', ' ')}.", "evidence"))
    for note in document.get("notes", []):
        said.append(_say(f"{note[0].upper()}{note[1:]}.", "notes"))
    for side, section in document["perplexity"].items():
        if isinstance(section, dict) and section.get("excluded"):
            counts = ", ".join(f"{v['n']} {k}" for k, v in section["excluded"].items())
            said.append(_say(f"Left out of the {side} perplexities: {counts}.", f"perplexity.{side}.excluded"))
    return said


def _why(document: dict[str, Any]) -> list[Sentence]:
    said = []
    loss = document["loss"]
    if loss.get("chosen_part") is not None:
        parts = (
            f"Of the loss's change {loss['delta']:+.4g}, {loss['chosen_part']:+.4g} came through the chosen answers "
            f"and {loss['rejected_part']:+.4g} through the rejected ones"
        )
        if loss["delta"]:
            parts += f" ({_percent(loss['rejected_part'] / loss['delta'])} of it through rejected)"
        said.append(_say(parts + ".", "loss.chosen_part", "loss.rejected_part"))
    row = document["perplexity"].get("chosen", {}).get("ppl_seq_mean")
    if row and row.get("dispersion") is not None:
        said.append(
            _say(
                f"Chosen log ppl_seq_mean moved {row['dlog']:+.3g}: {row['level']:+.3g} because answers became "
                f"{'less' if row['level'] > 0 else 'more'} likely on average, {row['dispersion']:+.3g} because some "
                f"moved {'further apart' if row['dispersion'] > 0 else 'closer'} than others.",
                "perplexity.chosen.ppl_seq_mean",
            )
        )
    row = document["perplexity"].get("chosen", {}).get("ppl_token")
    if row and row.get("length_weight") is not None and abs(row["length_weight"]) > 0.1 * abs(row["dlog"]) > 0:
        said.append(
            _say(
                f"Length matters: {row['length_weight']:+.3g} of log ppl_token's {row['dlog']:+.3g} comes from long "
                "answers moving otherwise than short ones.",
                "perplexity.chosen.ppl_token",
            )
        )
    said += _why_tokens(document)
    for check in document["checks"]:
        if check["outcome"] == "speaks":
            said.append(_say(f"{check['code']} {check['title']}: {check['reason']}.".replace("..", "."), "checks"))
    if not said:
        said.append(_say("The records do not tell why.", "loss", "perplexity"))
    return said


def _why_tokens(document: dict[str, Any]) -> list[Sentence]:
    said = []
    tokens = document.get("tokens") or {}
    after = tokens.get("chosen_after_first_difference")
    if after and after.get("share") is not None:
        said.append(
            _say(
                f"Tokens from the first difference on carry {_percent(after['share'])} of the chosen log-prob's change "
                f"({_percent(after['token_share'])} of the tokens).",
                "tokens",
            )
        )
    for side, section in (document.get("destination") or {}).items():
        if isinstance(section, dict) and section.get("text"):
            said.append(_say(f"{side.capitalize()}: {section['text']}", f"destination.{side}"))
    return said


def _which_pairs(document: dict[str, Any], run: Run | None) -> list[Sentence]:
    few = document.get("concentration")
    if not document["pairs"] or not few or few["pairs"] is None:
        return [_say("No pair-level split is possible here.", "pairs")]
    row = document["perplexity"]["chosen"]["ppl_seq_mean"]
    word = "rise" if row["dlog"] > 0 else "fall"
    said = [
        _say(
            f"{few['pairs']} of {few['of']} pairs carry {_percent(few['share'])} of the net {word} of chosen "
            "ppl_seq_mean.",
            "concentration",
        )
    ]
    texts = run.texts.set_index("pair_id") if run is not None and run.has("texts") else None
    for pair in document["pairs"][:3]:
        line = (
            f"{pair['pair_id']}: {_percent(pair['share_of_rise'])} of it, chosen cross-entropy "
            f"{_number(pair['chosen_ce_from'])} → {_number(pair['chosen_ce_to'])}"
            if pair.get("share_of_rise") is not None
            else f"{pair['pair_id']}"
        )
        if texts is not None and pair["pair_id"] in texts.index:
            chosen = texts.loc[pair["pair_id"], "chosen"]
            if isinstance(chosen, str):
                line += f': "{escape_text(chosen)}"'
        said.append(_say(line, "pairs"))
    return said


def _what_to_change(document: dict[str, Any]) -> list[Sentence]:
    said = []
    if document["verdict"]["harm"] == "cannot_tell":
        said.append(
            _say("First measure: score a task or read fixed prompts' answers at both checkpoints (dpo-diag outputs); "
                 "likelihoods alone do not decide.", "verdict")
        )  # fmt: skip
    for remedy in document["remedies"]:
        settings = "; ".join(f"{k}: {v}" for k, v in remedy["settings"].items())
        text = f"{remedy['name'][0].upper()}{remedy['name'][1:]}: {remedy['why']}; {remedy['do']}."
        said.append(_say(text + (f" [{settings}]" if settings else ""), "remedies"))
    tried = {line for r in document["remedies"] for line in (r["name"],)}
    for check in document["checks"]:
        if check["outcome"] == "speaks":
            for line in check["try"][:2]:
                if line not in tried:
                    tried.add(line)
                    said.append(_say(f"{check['code']}: {line}.".replace("..", "."), "checks"))
    if not said:
        said.append(_say("Nothing here asks for a change.", "verdict"))
    return said
