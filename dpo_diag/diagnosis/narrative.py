"""One page for a tired reader: what happened, how sure, why, which pairs, what to change, in that order.

Every sentence is made from numbers of the explanation and says which (`from`: the document's keys), so that a reader
can look them up; nothing is said that no number supports. Text of pairs is model or user text: control characters are
escaped, so that a terminal shows them and never obeys them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpo_diag.diagnosis.causes import ROUNDING, Sentence, causes, quoted, say
from dpo_diag.diagnosis.pair_intervals import counted, counted_about
from dpo_diag.diagnosis.said import ANSWERED_BY_REMEDIES, REFERENCE, against_baselines, stretch
from dpo_diag.stats import TOO_FEW, Interval
from dpo_diag.text import arrow, capital, interval, moved, number, percent, plural, safe, same, signed

HEADINGS = ("What happened", "How sure", "Why", "Which pairs", "What to change")
WEIGHING = {
    "ppl_token": "with every token weighing the same (ppl_token)",
    "ppl_seq_geomean": "with every answer weighing the same (ppl_seq_geomean)",
    "ppl_seq_mean": "as the mean of the answers' perplexities (ppl_seq_mean)",
}
NAMED_PAIRS = 3
EXCLUDED = {"nan": "NaN", "empty": "without a token", "no_count": "of unknown length"}
"""Why an answer is left out of a perplexity, in words."""
ADVICE = 3
"""Lines of a check's advice that are shown, of those that no check before it gave."""


def narrate(document: dict[str, Any]) -> list[dict[str, Any]]:
    """[{"heading", "sentences": [{"text", "from": [keys]}]}] in the order of HEADINGS."""
    sections = (
        _what_happened(document),
        _how_sure(document),
        causes(document),
        _which_pairs(document),
        _what_to_change(document),
    )
    return [
        {"heading": heading, "sentences": [sentence.document() for sentence in sentences]}
        for heading, sentences in zip(HEADINGS, sections, strict=True)
    ]


def _what_happened(document: dict[str, Any]) -> list[Sentence]:
    start = f"From {stretch(document)}"
    if document["from_step"] != REFERENCE:
        word = document["step_word"]
        start = f"Between {word} {document['from_step']} and {word} {document['to_step']}"
    where = f"{start} on {document['split']}"
    if document["n_pairs"] is not None:
        where += f" ({counted(document['n_pairs'], document['n_prompts'])})"
    loss, quadrants = document["loss"], document["quadrants"]
    if loss.get("to_is"):
        sentences = [say(f"On {document['split']} the loss {course(loss)}.", "loss.from", "loss.to")]
    elif loss.get("from") is not None:
        sentences = [say(f"{where} the loss {moved(loss['from'], loss['to'])}.", "loss.from", "loss.to")]
    elif document["split"] is None:
        sentences = [say(f"The loss is not known ({loss.get('not_applicable')}).", "loss")]
    else:
        sentences = [say(f"{where}: the loss is not known ({loss.get('not_applicable')}).", "loss")]
    sentences += [*_perplexities(document), *_turns(document)]
    if "both_fell" in quadrants:
        # Of few pairs a share says nothing that their number does not.
        n = quadrants["n_pairs"]
        few = n < document["thresholds"]["least_for_interval"]
        both, rejected, chosen, neither = (
            str(round(quadrants[name] * n)) if few else percent(quadrants[name])
            for name in ("both_fell", "chosen_rose", "rejected_rose", "both_rose")
        )
        of = f"of {plural(n, 'pair')}" if few else "of the pairs"
        text = (
            f"Both answers became less likely in {both} {of}, only the rejected one in {rejected}, only the chosen one "
            f"in {chosen}, neither in {neither}."
        )
        sentences.append(say(text, "quadrants"))
    return [say(document["verdict"]["text"], "verdict"), *sentences, *_logged_means(document), *_drift(document)]


def course(ends: Mapping[str, Any]) -> str:
    """How a logged mean moved, with what its two numbers are (`dpo_diag.ends`): "fell 0.6931 → 0.1977, from the
    reference to the mean of the last 7 of 30 rows (first row 0.4790, step 10)"."""
    if ends["rows"] == 1:
        return f"is {number(ends['to'])} in the only row{_at(ends)}"
    low, high = ends["interval"] or (math.nan, math.nan)
    noise = ", inside its noise" if low <= 0.0 <= high and not same(ends["from"], ends["to"]) else ""
    text = f"{moved(ends['from'], ends['to'])}{noise}, from {ends['from_is']} to {ends['to_is']}"
    if ends["from_is"] == "the first row":
        return text
    return f"{text} (first row {number(ends['first'])}{_at(ends)})"


def _at(ends: Mapping[str, Any]) -> str:
    """ ", step 10" of the first row, where the log states its steps."""
    return "" if ends["first_step"] is None else f", step {ends['first_step']}"


def _perplexities(document: dict[str, Any]) -> list[Sentence]:
    chosen = document["perplexity"].get("chosen", {})
    names = [n for n in WEIGHING if n in chosen]
    if not names:
        reason = document["perplexity"].get("not_applicable")
        return [say(f"Perplexity is not computed: {reason}.", "perplexity")] if reason else []
    unit = " per byte" if document.get("unit") == "byte" else ""
    ways = {moved(chosen[n]["from"], chosen[n]["to"]).split()[0] for n in names}
    if len(ways) == 1 and len(names) > 1:
        if (way := ways.pop()) == "stayed":
            way, numbers = "did not change,", ", ".join(f"{n} {number(chosen[n]['to'])}" for n in names)
        else:
            numbers = ", ".join(f"{n} {arrow(chosen[n]['from'], chosen[n]['to'])}" for n in names)
        text = f"The chosen answers' perplexity{unit} {way} whichever way it is averaged: {numbers}."
        return [say(text, "perplexity.chosen")]
    parts = "; ".join(f"{moved(chosen[n]['from'], chosen[n]['to'])} {WEIGHING[n]}" for n in names)
    sentences = [say(f"The chosen answers' perplexity{unit} {parts}.", "perplexity.chosen")]
    if {math.copysign(1, chosen[n]["dlog"]) for n in names if chosen[n]["dlog"]} == {1.0, -1.0}:
        text = "So whether perplexity rose depends on how answers are averaged: one number would mislead."
        sentences.append(say(text, "perplexity.chosen"))
    return sentences


def _turns(document: dict[str, Any]) -> list[Sentence]:
    """Turning points in one sentence per step at which something turned, the largest first."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for turn in sorted(document.get("turning_points", []), key=lambda t: -float(t["worse_by"])):
        by_step.setdefault(turn["step"], []).append(turn)
    sentences = []
    for step, turns in by_step.items():
        first = turns[0]
        known = first["loss_from"] is not None and math.isfinite(first["loss_from"])
        loss = f" the loss still fell {arrow(first['loss_from'], first['loss_to'])}, while" if known else ""
        moves = ", ".join(
            f"chosen {'mean log-prob' if t['quantity'] == 'sum_logp' else t['quantity']} {moved(t['from'], t['to'])}"
            for t in turns
        )
        text = f"There is a turning point: from step {step} to {first['to_step']}{loss} {moves}."
        sentences.append(say(text, "turning_points"))
    return sentences


def _usable(document: dict[str, Any]) -> dict[str, Any]:
    """The logged means that can be what their names say: no sentence rests on the others (DVG028)."""
    means = document.get("means", {})
    return {name: entry for name, entry in means.get("values", {}).items() if name not in means["withheld"]}


def _logged_means(document: dict[str, Any]) -> list[Sentence]:
    """Logged mean rewards of a run without pairs, and a dip that came back; of a supervised one where its NLL lies."""
    values, scale = _usable(document), against_baselines(document)
    sentences = [say(f"{capital(scale)}.", "means.scale", "means.values")] if scale else []
    for side in ("chosen", "rejected"):
        name = f"rewards/{side}" if values.get(f"rewards/{side}") else f"logps/{side}"
        entry = values.get(name)
        if not entry or entry["to"] is None or (entry["from"] is None and entry["rows"] > 1):
            continue
        key = f"means.values.{name}"
        sentences.append(say(f"The logged mean {name} {course(entry)}.", key))
        low, least_dip = entry.get("lowest"), document["thresholds"]["narrative.least_dip"]
        ends = min(entry["to"] if entry["from"] is None else entry["from"], entry["to"])
        if side == "chosen" and low is not None and ends - low > least_dip * (entry["highest"] - low):
            where = f"{document['step_word']} {entry['lowest_step']}"
            text = f"In between, {name} was as low as {number(low)} ({where}) and recovered."
            sentences.append(say(text, key))
    return sentences


def _drift(document: dict[str, Any]) -> list[Sentence]:
    """How far the policy lies from its reference on the data, where that was measured."""
    sentences = []
    for side, ends in document.get("kl", {}).items():
        ways = (("policy || reference", ends.get("reverse")), ("reference || policy", ends.get("forward")))
        values = ", ".join(
            f"KL({way}) {number(e['to']) if e['from'] is None else arrow(e['from'], e['to'])}" for way, e in ways if e
        )
        sentences.append(say(f"KL from the reference, {side} tokens: {values} nats per token.", f"kl.{side}"))
    return sentences


def _how_sure(document: dict[str, Any]) -> list[Sentence]:
    sentences = [say(f"Confidence: {document['verdict']['confidence']}.", "verdict.confidence")]
    values = _usable(document)
    chosen = document["perplexity"].get("chosen", {})
    changes = [("the loss", document["loss"], "delta", "loss.interval")]
    changes += [(f"log {n}", chosen[n], "dlog", f"perplexity.chosen.{n}") for n in WEIGHING if n in chosen]
    # One of the two: log-probs of batches scatter with their pairs, and have another start than the rewards.
    side = next((n for n in ("rewards/chosen", "logps/chosen") if n in values), None)
    changes += [(f"the mean {side}", values[side], "delta", f"means.values.{side}")] if side else []
    told, how = len(sentences), document["intervals"]
    for what, entry, delta, key in changes:
        bounds = entry.get("interval")
        if entry.get(delta) is not None and bounds and (entry[delta] or bounds[0] or bounds[1]):
            clusters = document.get("n_prompts") or 0
            estimate = Interval(
                entry[delta], bounds[0], bounds[1], document["n_pairs"] or 0, level=how["level"], clusters=clusters
            )
            uncertain = _not_certain(estimate) if bounds[0] <= 0.0 <= bounds[1] else ""
            text = f"Change of {what} {signed(entry[delta])} ({interval(bounds, how['level'])}{uncertain})."
            if same(entry["from"], entry["to"]):
                text = f"{capital(what)} is unchanged ({interval(bounds, how['level'])})."
            sentences.append(say(text, key))
    pairs, prompts = document["n_pairs"], document.get("n_prompts")
    if pairs and (prompts or pairs) < how["least"]:
        sentences.append(say(f"n = {counted(pairs, prompts)}: {TOO_FEW}.", "n_pairs", "n_prompts"))
    elif pairs and len(sentences) > told:
        shared = f"{counted(pairs, prompts)}, clustered by prompt, " if prompts else ""
        text = (
            f"Intervals are over the pairs of this set ({shared}{how['method']}); they do not include the scatter "
            "between training seeds."
        )
        sentences.append(say(text, "intervals", "n_pairs", "n_prompts"))
    elif any(entry["interval"] for entry in values.values()):
        text = "Intervals are over logged rows, whose batches hold other pairs each."
        sentences.append(say(text, "intervals"))
    for entry in document["evidence"]:
        if entry["delta"] or entry["direction"] != "no_worse":
            sentences.append(say(f"{entry['text']}: {entry['direction'].replace('_', ' ')}.", "evidence"))
    sentences += [say(f"{capital(note)}.", "notes") for note in document.get("notes", [])]
    for side, section in document["perplexity"].items():
        if isinstance(section, dict) and section.get("excluded"):
            counts = ", ".join(f"{v['n']} {EXCLUDED.get(k, k)}" for k, v in section["excluded"].items())
            sentences.append(say(f"Left out of the {side} perplexities: {counts}.", f"perplexity.{side}.excluded"))
    return sentences


def _not_certain(change: Interval) -> str:
    """That an interval holds 0 and, where pairs stand behind it, how many more would tell."""
    needed = change.needed(change.value)
    more = (
        f"; about {counted_about(needed, change)} are needed to tell a change of this size from none (power 80 %)"
        if needed
        else ""
    )
    return f": its direction is not certain{more}"


def _which_pairs(document: dict[str, Any]) -> list[Sentence]:
    if not document["pairs"]:
        supervised = document["verdict"]["label"] == "supervised"
        text = "A supervised run has no pairs" if supervised else "Nothing can be split over pairs here"
        return [say(f"{text}.", "pairs")]
    few = document.get("concentration")
    if few is None:
        lost = [p for p in document["pairs"] if (p["chosen_delta_logp"] or 0.0) < 0]
        if not lost:
            known = any(p["chosen_delta_logp"] is not None for p in document["pairs"])
            none = "No chosen answer lost log-prob" if known else "No pair has finite log-probs at both steps"
            return [say(f"{none}.", "pairs")]
        sentences = [say("The chosen answers that lost most log-prob (their lengths are not recorded):", "pairs")]
        lines = [(p, f"chosen log-prob {signed(p['chosen_delta_logp'], 4)} nats") for p in lost[:NAMED_PAIRS]]
    elif few["pairs"] is None:
        return [say("No pair moved.", "pairs")]
    else:
        sentences, lines = _carriers(document, few)
    for pair, line in lines:
        sentences.append(say(f"{pair_name(pair)}: {line}", "pairs"))
    return sentences


def pair_name(pair: Mapping[str, Any]) -> str:
    """A pair by the beginning of its chosen answer, with its id for looking it up; by its id where no text is known."""
    pair_id, text = safe(pair["pair_id"], one_line=True), pair.get("chosen_text")
    return f"{quoted(text)} ({pair_id})" if text else pair_id


def _carriers(document: dict[str, Any], few: dict[str, Any]) -> tuple[list[Sentence], list[tuple[dict[str, Any], str]]]:
    """Who carries the net change of chosen ppl_seq_mean; of a net change that is next to none, shares say nothing."""
    dlog = document["perplexity"]["chosen"]["ppl_seq_mean"]["dlog"]
    pairs = document["pairs"][:NAMED_PAIRS]
    ends = [f"chosen cross-entropy {arrow(p['chosen_ce_from'], p['chosen_ce_to'])}" for p in pairs]
    if abs(dlog) < document["thresholds"]["verdict.least_dlog"]:
        text = f"Chosen ppl_seq_mean hardly changed (log {signed(dlog)}): rises and falls of single pairs cancel."
        return [say(text, "concentration")], list(zip(pairs, ends, strict=True))
    word = "rise" if dlog > 0 else "fall"
    if few["of"] == 1:
        return [say("The set is one pair.", "concentration")], list(zip(pairs, ends, strict=True))
    if few["of"] < document["thresholds"]["least_for_interval"]:
        text = f"{plural(few['of'], 'pair')}, too few for shares of the {word} of chosen ppl_seq_mean to mean anything."
        return [say(text, "concentration")], list(zip(pairs, ends, strict=True))
    carry = f"{few['pairs']} of {plural(few['of'], 'pair')} carry {percent(few['share'])}"
    against = f"; the others together {'fell' if dlog > 0 else 'rose'}" if few["share"] > 1.0 + ROUNDING else ""
    sentences = [say(f"{carry} of the net {word} of chosen ppl_seq_mean{against}.", "concentration")]
    least = document["thresholds"]["narrative.least_pair_share"]
    shown = [(p, f"{percent(p['share_of_rise'])} of it, {e}") for p, e in zip(pairs, ends, strict=True)]
    return sentences, [line for line in shown if abs(line[0]["share_of_rise"]) >= least]


def _broken(document: dict[str, Any]) -> bool:
    """Whether the numbers must be mended before anything else can be said (see `checks.shared.advice.SOUND`)."""
    speaking = {c["code"]: c["severity"] for c in document["checks"] if c["outcome"] == "speaks"}
    return "error" in (speaking.get("DVG011"), speaking.get("DVG028"))


def _what_to_change(document: dict[str, Any]) -> list[Sentence]:
    sentences = []
    if document["verdict"]["harm"] == "cannot_tell" and not _broken(document):
        text = (
            "First measure: score a task or compare fixed prompts' answers of both checkpoints "
            "(dpo-generate, dpo-diag outputs)."
        )
        if document["evidence"]:
            text = "First measure on more questions: what was measured cannot tell yet."
        sentences.append(say(text, "verdict"))
    for remedy in document["remedies"]:
        settings = "; ".join(f"{k}: {v}" for k, v in remedy["settings"].items())
        text = f"{capital(remedy['name'])}: {remedy['why']}; {remedy['do']}."
        sentences.append(say(text + (f" [{settings}]" if settings else ""), "remedies"))
    said: set[str] = set()
    given = tuple(remedy["name"] for remedy in document["remedies"])
    for check in document["checks"]:
        if check["outcome"] != "speaks" or (document["remedies"] and check["code"] in ANSWERED_BY_REMEDIES):
            continue
        new = [line for line in check["try"] if line not in said and not line.startswith(given)]
        advice = new[:ADVICE]
        said |= set(advice)
        sentences += [say(f"{check['code']}: {line.rstrip('.')}.", "checks") for line in advice]
    return sentences or [say("Nothing here asks for a change.", "verdict")]
