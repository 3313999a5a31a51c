"""An explanation in fifteen lines: the verdict, the few numbers, up to three reasons, two changes, a pair, what next.

Made from the explanation's document alone. Each thing is said once: what the table shows no reason repeats. A text that
does not fit loses what stands in brackets, then its last clauses, and only then words; commands are never cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from dpo_diag.diagnosis.causes import quoted
from dpo_diag.diagnosis.said import ANSWERED_BY_REMEDIES, CAVEAT, REFERENCE, alone, stretch, supervised_notes
from dpo_diag.ends import REFERENCE_IS
from dpo_diag.styled import wrap
from dpo_diag.text import both_ends, number, percent, plural, safe, signed
from dpo_diag.translated import Catalogue, catalogue

LINES = 15
WIDEST = 100
"""Cells of a line: a wider terminal shows no more, longer lines are hard to follow."""
REASONS, CHANGES, SCORES = 3, 2, 2
VERDICT_LINES, MOST = 3, 4
"""Lines that the verdict has before anything else grows, and that any text may grow to."""
LEFT_OUT = ("pairs", "why", "do", "why")
"""What goes where the lines do not suffice: the last of these, in this order."""
_LABEL = 6
SUPERVISED = {
    "nll_loss": "plain NLL", "ppl_token/response": "response ppl_token", "ppl_token/prompt": "prompt ppl_token",
    "bits_per_byte/response": "bits per byte", "top1/response": "top-1 share", "top5/response": "top-5 share",
    "entropy": "entropy",
}  # fmt: skip
"""Rows of a supervised run beside its loss: metric -> its name, what says most first."""
SUPERVISED_ROWS = 6
"""More of them leave no line for what the numbers are measured against."""
HARM_STYLES = {"harmful": "bold red", "benign": "bold green", "none": "bold green", "cannot_tell": "bold yellow"}
_ASIDE = re.compile(r" \([^() ,]*+[ ,][^()]*+\)|（[^（） ，]*+[ ，][^（）]*+）")
"""A bracket with more than a name in it."""
_COMPARED = re.compile(r" \((?:from|first to last|the mean of)[^()]*\)")
"""What was compared: the first line says so."""
_CLAUSE = re.compile(r"(?:; |: |, |\. |；|：|，|。)")
QUOTE = 26
"""Characters that name a pair."""
ANSWERS = {"correct": "answers right", "unfinished": "answers cut off"}
"""kind of a measure of answers -> its name where a row has no room for what it is."""
SCORE_TOLD = frozenset({"DVG025"})
"""Checks that say of a score what its row says."""


@dataclass
class _Item:
    """A text with the word in front of it, the lines that it may take, and its style."""

    label: str
    text: str
    lines: int = 1
    style: str = ""


def short_lines(
    document: Mapping[str, Any], width: int = 80, following: Sequence[str] = (), say: Catalogue | None = None
) -> list[Text]:
    """The explanation as at most `LINES` lines of at most `width` cells, the commands that follow last.

    Args:
        following: the next commands; each takes a line, however long, so that it can be copied.
        say: the texts' language; None for English.
    """
    width, say = min(width, WIDEST), say or catalogue("en")
    verdict = document["verdict"]
    head = _head(document, width, say)
    told = _Item("", say(f"{verdict['headline']} {_harm(verdict)}"), style=HARM_STYLES[verdict["harm"]])
    told.lines = min(len(wrap(told.text, width)), VERDICT_LINES)
    lost = [_Item("", say(text), style="bold yellow") for text in [document.get("left_out")] if text]
    stopped = [by["line"] for by in [document.get("stopped_by")] if by]
    told_by_guards = (*stopped, *document.get("guards_acted", ()))
    ended = [_Item("", say(text), style="bold yellow") for text in told_by_guards]
    for item in (*ended, *lost):
        item.lines = min(len(wrap(item.text, width)), MOST)
    numbers = _table([tuple(map(say, row)) for row in _rows(document)], width, say)
    room = LINES - 1 - len(numbers) - len(following) - sum(item.lines for item in (*ended, *lost))
    parts = {
        "note": [say(text) for text in (*_taken(document), *supervised_notes(document)) if text],
        "why": _reasons(document, say), "do": _changes(document, say), "pairs": list(map(say, _pairs(document))),
    }  # fmt: skip
    for name in LEFT_OUT:
        if told.lines + sum(map(len, parts.values())) > room:
            parts[name] = parts[name][:-1]
    items = [told, *(_Item(say(name) * (not i), text) for name, texts in parts.items() for i, text in enumerate(texts))]
    _share(items, width, room)
    lines = [Text(head, style="bold")]
    for item in (*ended, told, *lost):
        lines += _lines(item, width)
    lines += map(Text, numbers)
    for item in items[1:]:
        lines += _lines(item, width)
    return [*lines, *_commands(following, say("next"))]


def _commands(following: Sequence[str], label: str) -> list[Text]:
    return [
        Text.assemble((set_cell_size(label * (not i), _LABEL), "bold"), (c, "cyan")) for i, c in enumerate(following)
    ]


def _share(items: Sequence[_Item], width: int, room: int) -> None:
    """Give the lines that are left to the texts that need them, the first ones first."""
    spare = room - sum(item.lines for item in items)
    for most in range(2, MOST + 1):
        for item in items:
            if spare > 0 and item.lines == most - 1 and _fits(item, width, most - 1) != item.text:
                item.lines, spare = most, spare - 1


def _lines(item: _Item, width: int) -> list[Text]:
    indent = _LABEL if item.style == "" else 0
    rows = wrap(_fits(item, width, item.lines), width - indent)
    if not indent:
        return [Text(row, style=item.style) for row in rows]
    return [Text.assemble((set_cell_size(item.label * (not i), indent), "bold"), row) for i, row in enumerate(rows)]


def _fits(item: _Item, width: int, lines: int) -> str:
    """The longest form of a text that fits into so many lines."""
    room = width - (_LABEL if item.style == "" else 0)
    for shorter in _forms(item.text):
        if len(wrap(shorter, room)) <= lines:
            return shorter
    rows = wrap(item.text, room)
    kept, rest = rows[: lines - 1], " ".join(rows[lines - 1 :])
    return " ".join([*kept, f"{set_cell_size(rest, room - 1).rstrip()}…"])


def _forms(text: str) -> Iterator[str]:
    """A text and its shorter forms: without asides from the last on, then without its last clauses."""
    yield text
    code = re.search(r" \(DVG\d+\)$", text)
    body, tail = (text[: code.start()], code.group()) if code else (text, "")
    while asides := list(_ASIDE.finditer(body)):
        body = body[: asides[-1].start()] + body[asides[-1].end() :]
        yield body + tail
    for mark in reversed(list(_CLAUSE.finditer(body))):
        if mark.start() > len(body) / 3 and _closed(body[: mark.start()]):
            yield body[: mark.start()] + ({". ": ".", "。": "。"}.get(mark.group(), "")) + tail


def _closed(text: str) -> bool:
    """Whether no bracket and no quotation is open at its end."""
    return text.count('"') % 2 == 0 and all(text.count(a) == text.count(b) for a, b in ("()", "[]", "（）"))


# --- what is said -----------------------------------------------------------------------------------------------------


def _head(document: Mapping[str, Any], width: int, say: Catalogue) -> str:
    """The run, what it is, what was compared; of a long path its end."""
    loss = document["loss"]
    if document["n_pairs"] is not None:
        what = f"{stretch(document)} on {document['split']}, {plural(alone(document) or document['n_pairs'], 'pair')}"
    elif loss.get("to_is"):
        ends = [str(loss[end]).removeprefix("the mean of ") for end in ("from_is", "to_is") if loss[end]]
        what = f"{document['split']}, {' to '.join(ends)}"
    elif document["split"] is not None:
        what = f"{document['split']}, {stretch(document)}"
    else:
        what = "nothing to compare"
    what, kind = say(what), say(document["kind"])
    run, room = safe(document["run"], one_line=True), width - cell_len(f" ({kind}): {what}")
    if cell_len(run) > max(room, 12):
        run = f"…{run[-max(room, 12) + 1 :]}"
    line = f"{run} ({kind}): {what}"
    return line if cell_len(line) <= width else f"{set_cell_size(line, width - 1).rstrip()}…"


def _harm(verdict: Mapping[str, Any]) -> str:
    """The sentence about harm, with how sure it is unless very; the scores that decided stand in the table."""
    if verdict["harm"] == "cannot_tell" or verdict["confidence"] == "high":
        return str(verdict["harm_text"])
    return f"{verdict['harm_text'].rstrip('.')}; confidence {verdict['confidence']}."


Row = tuple[str, str, str, str, str]
"""What, before, after, change, its interval."""


def _rows(document: Mapping[str, Any]) -> list[Row]:
    rows = [row for row in (_loss_row(document), *_side_rows(document), _kl_row(document)) if row]
    return [*rows, *(_score_row(e, document) for e in _scores(document))]


def _loss_row(document: Mapping[str, Any]) -> Row | None:
    loss = document["loss"]
    return _row("loss", loss, document) if loss.get("to") is not None else None


def _side_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    """Each side by its perplexity, else by its reward, else by its log-prob."""
    means = document["means"]
    values = {k: v for k, v in means.get("values", {}).items() if k not in means["withheld"]}
    per = " per byte" if document.get("unit") == "byte" else ""
    shown: list[tuple[str, str]] = [("chosen", "ppl_token"), ("rejected", "ppl_token")]
    if document["verdict"]["label"] == "sign_depends_on_aggregator":
        shown = [("chosen", "ppl_token"), ("chosen", "ppl_seq_geomean"), ("chosen", "ppl_seq_mean")]
    for side, name in shown:
        known = document["perplexity"].get(side, {})
        if name not in known:
            name = next((n for n in ("ppl_token", "ppl_seq_geomean", "ppl_seq_mean") if n in known), "")
        if name and known[name].get("dlog") is not None:
            yield _perplexity_row(f"{side} {name}{per}", known[name], document)
        elif entry := next((values[k] for k in (f"rewards/{side}", f"logps/{side}") if k in values), None):
            what = "reward" if f"rewards/{side}" in values else "log-prob"
            yield _row(f"{side} {what}", entry, document)
        elif (moved := document["quadrants"].get(f"mean_delta_{side}")) is not None:
            yield f"{side} log-prob", "", "", signed(moved), ""
    if "ppl_token/response" in values:
        for name in [name for name in SUPERVISED if name in values][: SUPERVISED_ROWS - ("kl" in document)]:
            yield _row(SUPERVISED[name], values[name], document)


def _kl_row(document: Mapping[str, Any]) -> Row | None:
    """How far the policy lies from the reference on the answers that it was to learn."""
    for side in ("chosen", "response"):
        known = document.get("kl", {}).get(side, {}).get("reverse")
        if known is not None:
            before = "" if known["from"] is None else number(known["from"])
            moved = "" if known["from"] is None else signed(known["to"] - known["from"])
            return f"{side} KL(policy || ref)", before, number(known["to"]), moved, ""
    return None


def _row(what: str, entry: Mapping[str, Any], document: Mapping[str, Any]) -> Row:
    before, after = both_ends(entry["from"], entry["to"])
    start = document["loss"].get("from_is")
    # The header says where the loss began; a mean that began elsewhere says so itself.
    other = entry.get("from_is") if start and entry.get("from_is") not in (None, "", start) else None
    if other:
        what += f", from {'0' if other == REFERENCE_IS else other.removeprefix('the ')}"
    return what, before, after, signed(entry["delta"]), _bounds(entry["interval"], document, signed)


def _perplexity_row(what: str, entry: Mapping[str, Any], document: Mapping[str, Any]) -> Row:
    """A perplexity's change is a factor, shown in per cent."""

    def grown(dlog: float) -> str:
        share = math.expm1(dlog)
        return f"{100 * share:+.0f} %" if abs(share) >= 0.095 else f"{100 * share:+.1f} %"

    before, after = both_ends(entry["from"], entry["to"])
    return what, before, after, grown(entry["dlog"]), _bounds(entry.get("interval"), document, grown)


def _score_row(entry: Mapping[str, Any], document: Mapping[str, Any]) -> Row:
    """A score; one that began at another step than the likelihoods says so, as the header names theirs."""
    what, decimals = ANSWERS.get(entry["kind"]) or f"{entry['what']} ({entry['split']})", "{:+.3f}".format
    start = document["from_step"]
    if entry["kind"] != "review" and entry["from_step"] != (0 if start == REFERENCE else start):
        what += f", since {entry['from_step']}"
    bounds = entry["interval"]
    text = f"{100 * entry['level']:.4g} %: {decimals(bounds[0])} to {decimals(bounds[1])}" if bounds else ""
    return what, f"{entry['from']:.3f}", f"{entry['to']:.3f}", decimals(entry["delta"]), text


def _bounds(bounds: Sequence[float] | None, document: Mapping[str, Any], write: Any) -> str:
    level = document["intervals"]["level"]
    if not bounds or (bounds[0] == bounds[1] == 0) or math.isnan(level):
        return ""
    return f"{100 * level:.4g} %: {write(bounds[0])} to {write(bounds[1])}"


def _scores(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was measured besides likelihoods: what decided about harm first."""
    decided = {(b["what"], b["split"]) for b in document["verdict"]["because"]}
    order = {"worse": 0, "better": 1, "no_worse": 1, "unclear": 2}
    ranked = sorted(document["evidence"], key=lambda e: ((e["what"], e["split"]) not in decided, order[e["direction"]]))
    return ranked[:SCORES]


def _table(rows: Sequence[tuple[str, ...]], width: int, say: Callable[[str], str]) -> list[str]:
    """Aligned lines; the first column gives way where they do not fit, then the intervals."""
    if not rows:
        return []
    cells = [("", say("before"), say("after"), say("change"), ""), *rows]
    sizes = [max(cell_len(row[i]) for row in cells) for i in range(5)]
    name = min(sizes[0], width - sum(sizes[1:]) - 8)
    if name < min(sizes[0], 24):
        name = min(sizes[0], width - sum(sizes[1:4]) - 6)
        cells = [(*row[:4], "") for row in cells]
    lines = []
    for what, before, after, change, bounds in cells:
        shown = safe(what, one_line=True)
        shown = shown if cell_len(shown) <= name else f"{set_cell_size(shown, name - 1)}…"
        right = (" " * (size - cell_len(v)) + v for v, size in zip((before, after, change), sizes[1:4], strict=True))
        numbers = f"{'  '.join(right)}  {bounds}"
        lines.append(f"{set_cell_size(shown, name)}  {numbers}".rstrip())
    return lines


def _taken(document: Mapping[str, Any]) -> list[str]:
    """Which of a source's runs or trainings this is about, where it holds several: another one may be meant."""
    return [note for note in document.get("notes", []) if "(--run " in note or "; --run " in note]


def _findings(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was found: the verdict's causes in their order, then the other checks that speak, the gravest first."""
    rank = {"error": 0, "warning": 1, "info": 2}
    of = {c["code"]: c for c in document["checks"]}
    causes = [cause["code"] for cause in document["verdict"]["causes"]]
    spoken = [c for c in document["checks"] if c["outcome"] == "speaks" and c["code"] not in causes]
    return [*(of[code] for code in causes), *sorted(spoken, key=lambda c: rank[c["severity"]])]


def _reasons(document: Mapping[str, Any], say: Catalogue) -> list[str]:
    """Why, the verdict's own cause first, then through which side, then what else was found."""
    told = [f for f in _findings(document) if not (f["code"] in SCORE_TOLD and _scores(document))]
    texts = [f"{say.begin(say(_reason(finding)))} ({finding['code']})" for finding in told]
    side = say(_through_which_side(document))
    return [*texts[:1], *([side] if side else []), *texts[1:]][:REASONS]


def _reason(finding: Mapping[str, Any]) -> str:
    reason = str(finding["reason"]).removeprefix("cannot tell: ").removesuffix(f"; {CAVEAT}").rstrip(".")
    return _COMPARED.sub("", safe(reason, one_line=True))


def _through_which_side(document: Mapping[str, Any]) -> str:
    """Where one side alone moved the loss; else it is no reason, only a sum."""
    loss = document["loss"]
    chosen, rejected = loss.get("chosen_part"), loss.get("rejected_part")
    if chosen is None or rejected is None:
        return ""
    if "coefficient_part" in loss and (loss["coefficients"] or _tells(loss)):
        own, answers = signed(loss["coefficient_part"]), signed(chosen + rejected)
        if not loss["coefficients"]:
            return f"The pairs' own betas moved the loss by {own}, the answers by {answers}"
        return f"The schedule's coefficients moved the loss by {own}, the answers by {answers}"
    parts = f"({signed(rejected)})", f"({signed(chosen)})"
    if loss["delta"] < 0 < chosen:
        return f"Rejected alone lowered the loss {parts[0]}; chosen raised it {parts[1]}"
    if rejected < 0 < loss["delta"]:
        return f"Chosen raised the loss {parts[1]} by more than rejected lowered it {parts[0]}"
    return ""


def _tells(loss: Mapping[str, Any]) -> bool:
    """Whether the pairs' own betas moved a tenth of what moved: an epsilon of 1 % mostly moves less."""
    return bool(abs(loss["coefficient_part"]) >= 0.1 * abs(loss["delta"]))


def _changes(document: Mapping[str, Any], say: Catalogue) -> list[str]:
    """What to change: the remedies with this run's numbers, then the first advice of each check that speaks."""
    nothing = "Nothing has to change: what was measured did not get worse"
    texts = [say(nothing)] * (document["verdict"]["harm"] == "benign")
    texts += [f"{say.begin(say(r['name']))}: {say(_setting(r))}" for r in document["remedies"]]
    given = tuple(r["name"] for r in document["remedies"])
    for check in _findings(document):
        if check["outcome"] != "speaks" or (given and check["code"] in ANSWERED_BY_REMEDIES):
            continue
        if check["severity"] == "info" and texts:
            continue
        advice = next((line for line in check["try"] if not line.startswith(given or ("\0",))), None)
        if advice and (text := say.begin(say(safe(advice, one_line=True)))) not in texts:
            texts.append(text)
    return texts[:CHANGES]


def _setting(remedy: Mapping[str, Any]) -> str:
    trl = remedy["settings"].get("TRL")
    return f"{trl} in TRL" if trl else str(remedy["do"])


def _pairs(document: Mapping[str, Any]) -> list[str]:
    """How many pairs carry the rise of chosen perplexity, where it rose, and the first of them by its text."""
    first = next(iter(document["pairs"]), None)
    if first is None or (first["chosen_delta_logp"] or 0.0) >= 0:
        return []
    few, text = document.get("concentration"), first.get("chosen_text")
    begin = text if not text or len(text) <= QUOTE else f"{text[: QUOTE - 1].rstrip()}…"
    name = quoted(begin) if begin else safe(first["pair_id"], one_line=True)
    lost = f"{signed(first['chosen_delta_logp'])} nats"
    if few is None:  # then the pairs stand in the order of what they lost
        return [f"{name} lost most: {lost}"]
    limits, rise = document["thresholds"], document["perplexity"]["chosen"]["ppl_seq_mean"]["dlog"]
    # Of few pairs, or of a net change that is next to none, shares say nothing.
    if few["pairs"] and few["of"] >= limits["least_for_interval"] and rise >= limits["verdict.least_dlog"]:
        return [f"{few['pairs']} of {few['of']} carry {percent(few['share'])} of chosen's rise; first {name}"]
    return [f"chosen log-prob of {name}: {lost}"]
