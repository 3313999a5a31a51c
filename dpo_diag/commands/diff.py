"""`dpo-diag diff`: what differs in two runs, where they part, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.command_lines import say_next
from dpo_diag.next_steps import after_diff
from dpo_diag.text import arrow, bracket, number, plural, records, safe, signed, some, table, terminal_width, to_json

if TYPE_CHECKING:
    from dpo_diag.diagnosis.differences import Difference, Parting
    from dpo_diag.diagnosis.two_runs import TwoRuns

_ANSWER_CHARS = 300


def diff(
    run_a: Path, run_b: Path, /, *, split: str | None = None, step: int | None = None, top: int = 5,
    json: bool = False,
) -> int:  # fmt: skip
    """What differs in two runs, where they part, and what came of it.

    Args:
        run_a: a run folder.
        run_b: the run that is held against it: changes are b - a.
        split: which set of pairs (default: the best that both measured).
        step: of both (default: the last of each).
        top: pairs and answers that are shown.
        json: one JSON document on standard output, nothing else there.
    """
    from dpo_diag.diagnosis.two_runs import compare_runs
    from dpo_diag.records import load_run

    found = compare_runs(load_run(run_a), load_run(run_b), split, step)
    following = after_diff(run_b)
    if json:
        print(to_json({**found.document(), "next": following}, indent=2))
        return 0
    print("\n".join(lines(found, terminal_width(unknown=80), top)))
    say_next(following)
    return 0


def lines(found: TwoRuns, width: int, top: int) -> list[str]:
    """The comparison for a terminal."""
    return [
        *_heads(found, width),
        *_settings(found.differences, width),
        *_parts(found.partings, width),
        *_changes(found, width),
        *_pairs(found, width, top),
        *_answers(found, width, top),
        *(line for note in found.notes for line in _wrapped(f"note: {note}", width)),
    ]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    from dpo_diag.styled import wrap

    return [indent + line for line in wrap(safe(text, one_line=True), width - len(indent))]


def _heads(found: TwoRuns, width: int) -> Iterator[str]:
    for letter, run, step in zip("ab", found.runs, found.steps, strict=True):
        about = [run.kind, run.info.status or "", "" if step is None else run.info.at(step)]
        yield from _wrapped(f"{letter}: {run.path}  ({', '.join(a for a in about if a)})", width)


def _settings(differing: list[Difference], width: int) -> Iterator[str]:
    """One row for each; what one run alone says of a thing stands behind the rest, in a line."""
    yield ""
    if not differing:
        yield "Nothing differs in what was set, in data, model or versions."
        return
    yield "What differs"
    rows = [[d.area, d.name, _value(d.a), _value(d.b)] for d in differing if d.a is not None and d.b is not None]
    if rows:
        yield table(["", "", "a", "b"], rows, width)
    for letter, lone in (("a", [d for d in differing if d.b is None]), ("b", [d for d in differing if d.a is None])):
        if lone:
            said = some((f"{d.name}={_value(d.a if letter == 'a' else d.b)}" for d in lone), 6)
            yield from _wrapped(f"only {letter} says: {said}", width)


def _value(value: Any) -> str:
    return to_json(value) if isinstance(value, (list, Mapping, bool)) else number(value)


def _parts(partings: list[Parting], width: int) -> Iterator[str]:
    if not partings:
        return
    yield ""
    yield "Where they part"
    for p in partings:
        what = f"{p.what} {p.split}".strip()
        if p.step is None:
            text = f"alike at all {plural(p.shared, 'shared step')}"
        else:
            since = f"alike until step {p.last_alike}" if p.last_alike is not None else "the first shared step"
            text = f"step {p.step} ({since}), {p.n_different} of {p.n}: {p.text}"
        yield from _hung(what, text, width)


def _hung(head: str, text: str, width: int, size: int = 19) -> Iterator[str]:
    """A text wrapped behind its head."""
    for i, line in enumerate(_wrapped(text, width - size - 4)):
        yield f"  {head if i == 0 else '':<{size}}  {line}"


def _changes(found: TwoRuns, width: int) -> Iterator[str]:
    if not found.changes and not found.scores:
        return
    yield ""
    if found.changes and found.aligned is not None:
        ids = found.aligned.pairs["pair_id"]
        yield f"At the end, {found.intervals.counted(ids)} of {found.split}"
        header = ["", "a → b", f"b - a, {100 * found.intervals.level:.4g} %", ""]
        yield table(header, [
            [c.name, arrow(c.a, c.b), f"{signed(c.change.value)} {bracket(c.change.low, c.change.high, signed)}",
             "change of the log" if c.name.startswith("ppl") else c.unit] for c in found.changes
        ], width)  # fmt: skip
    for m in found.scores:
        yield from _wrapped(m.told(found.thresholds), width)


def _pairs(found: TwoRuns, width: int, top: int) -> Iterator[str]:
    if found.pairs.empty or not top:
        return
    sides = [s for s in ("chosen", "rejected") if f"{s}_change" in found.pairs]
    if not found.pairs[[f"{s}_change" for s in sides]].abs().gt(0).any(axis=None):
        return
    yield ""
    yield "Pairs that differ most (cross-entropy, b - a)"
    rows = [
        [safe((r["chosen"] or r["pair_id"][:12]).strip(), max_chars=200, one_line=True),
         *(signed(r[f"{s}_change"]) for s in sides)]
        for r in records(found.pairs.head(top))
    ]  # fmt: skip
    yield table(["chosen answer", *sides], rows, width)


def _answers(found: TwoRuns, width: int, top: int) -> Iterator[str]:
    answers = found.answers
    if answers.empty:
        return
    counts = answers["outcome"].value_counts()
    told = {
        "alike": "alike", "lost": "right in a, wrong in b", "won": "wrong in a, right in b",
        "right": "other text, right", "wrong": "other text, wrong", "other": "other text",
    }  # fmt: skip
    yield ""
    parts = ", ".join(f"{counts[o]} {words}" for o, words in told.items() if o in counts)
    yield from _wrapped(f"Answers to {plural(len(answers), 'prompt')}: {parts}", width)
    differing = answers[answers["outcome"] != "alike"].head(top)
    for row in records(differing):
        yield ""
        yield from _wrapped(f"[{told[row['outcome']]}] {_end_of(row['prompt'])}", width)
        for letter in "ab":
            text = safe(str(row[f"text_{letter}"]).strip(), max_chars=_ANSWER_CHARS, one_line=True)
            yield from _hung(letter, text, width, size=1)


def _end_of(prompt: Any) -> str:
    """The last line of a prompt, where its question stands."""
    text = str(prompt or "").strip()
    return text.splitlines()[-1] if text else ""
