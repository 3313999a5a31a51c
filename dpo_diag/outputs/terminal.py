"""Answers as text for a terminal: side by side or stacked, diffs readable without colour, nothing that acts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from dpo_diag.outputs.diff import marked, word_diff
from dpo_diag.outputs.sanitize import for_terminal

RED, GREEN, BOLD, DIM, RESET = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[2m", "\x1b[0m"
MIN_COLUMN = 36
REWRITTEN = 0.4
"""Below this share of unchanged characters (of the shorter answer) an answer is shown whole, named rewritten."""


def char_width(char: str) -> int:
    """Terminal cells of one character: 0 for combining marks, 2 for wide and full-width ones."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def width(text: str) -> int:
    """Terminal cells of a line."""
    return sum(map(char_width, text))


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` cells; breaks at blanks where there are any, inside a long word where not.

    Newlines of the text stay; [""] for an empty text.
    """
    lines: list[str] = []
    for paragraph in text.expandtabs(4).split("\n"):
        line, cells, last_blank = "", 0, -1
        for char in paragraph:
            size = char_width(char)
            if cells + size > columns and line:
                if last_blank > 0 and char != " ":
                    lines.append(line[:last_blank].rstrip())
                    line = line[last_blank + 1 :]
                else:
                    lines.append(line.rstrip())
                    line = ""
                cells, last_blank = width(line), -1
                if char == " " and not line:
                    continue
            if char == " ":
                last_blank = len(line)
            line += char
            cells += size
        lines.append(line)
    return lines


def pad(text: str, columns: int) -> str:
    """The line filled with blanks to `columns` cells."""
    return text + " " * max(0, columns - width(text))


def clip(text: str, columns: int) -> str:
    """The line cut to `columns` cells, with … if something was cut."""
    if width(text) <= columns:
        return text
    out, cells = "", 0
    for char in text:
        if cells + char_width(char) > columns - 1:
            break
        out, cells = out + char, cells + char_width(char)
    return out + "…"


def table(rows: Sequence[Sequence[Any]], header: Sequence[str], columns: int = 100) -> list[str]:
    """Rows as aligned lines, numbers to the right; text cells are made safe and the widest column is clipped to fit.

    [] for no rows.
    """
    if not rows:
        return []
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], (int, float)) or row[i] is None for row in rows) for i in range(len(header))]
    sizes = [max(width(h), *(width(row[i]) for row in cells)) for i, h in enumerate(header)]
    while sum(sizes) + 2 * len(sizes) > columns and max(sizes) > 12:
        sizes[sizes.index(max(sizes))] -= 1

    def line(values: Sequence[str]) -> str:
        parts = []
        for value, size, right in zip(values, sizes, numeric, strict=True):
            shown = clip(value, size)
            parts.append(" " * (size - width(shown)) + shown if right else pad(shown, size))
        return "  ".join(parts).rstrip()

    return [line(list(header)), *(line(row) for row in cells)]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3g}" if abs(value) < 1e-3 and value else f"{value:.3f}"
    return for_terminal(value, max_chars=200, one_line=True)


def distinct_answers(entry: dict[str, Any], labels: dict[tuple[str, int], str]) -> list[tuple[str, dict[str, Any]]]:
    """The answers of a prompt's entry that the shown looks gave, as (names of the looks, answer)."""
    shown = []
    for answer in entry["answers"]:
        names = [labels[key] for look in answer["looks"] if (key := (look["model"], look["step"])) in labels]
        if names:
            shown.append((" = ".join(names), answer))
    return shown


def answer_lines(
    entry: dict[str, Any],
    labels: dict[tuple[str, int], str],
    *,
    columns: int = 100,
    side_by_side: bool = False,
    diff: bool = True,
    color: bool = False,
    max_chars: int = 600,
) -> list[str]:
    """One prompt and its answers as lines.

    Args:
        entry: of `compare`'s `prompts`.
        labels: (model, step) -> name of the looks to show, in order.
        columns: width to fill.
        side_by_side: one column per distinct answer, if they fit; else one below the other.
        diff: mark what changed since the answer before it, as `[-old-]{+new+}`.
        color: also colour the marks.
        max_chars: characters shown of a prompt or an answer.
    """
    tags = ", ".join(entry.get("tags") or [])
    count = entry["times_changed"]
    note = (
        f"changed {count} time{'s' if count != 1 else ''}"
        if count
        else "unchanged"
        if entry["changed"] is False
        else ""
    )
    title = "  ".join(part for part in (f"[{entry['prompt_id']}]", tags, note) if part)
    lines = [_paint(clip(for_terminal(title, one_line=True), columns), BOLD, color)]
    for name in ("prompt", "reference"):
        if entry.get(name) is not None:
            text = for_terminal(f"{name}: {entry[name]}".rstrip(), max_chars=max_chars)
            lines += [_paint("  " + line, DIM, color) for line in wrap(text, columns - 2)]
    answers = distinct_answers(entry, labels)
    blocks: list[tuple[str, str]] = []
    previous: str | None = None
    for names, answer in answers:
        text = for_terminal(answer["text"], max_chars=max_chars)
        facts = []
        if answer.get("correct") is not None:
            facts.append(
                "right" if answer["correct"] == 1 else "wrong" if answer["correct"] == 0 else f"{answer['correct']:.2f}"
            )
        if answer.get("finish_reason") == "length":
            facts.append("cut off by length")
        shown = text
        if diff and previous is not None:
            # Sanitised first: an escape sequence must not hide in a piece, nor a mark be forged by splitting one.
            pieces = word_diff(previous, text)
            kept = sum(len(p.text) for p in pieces if p.kind == "same")
            # Where little stayed, marks at every word only get in the way of reading the new answer.
            if kept >= REWRITTEN * min(len(previous), len(text)):
                shown = marked(pieces)
            else:
                facts.append("rewritten")
        blocks.append((names + (f" ({', '.join(facts)})" if facts else ""), shown or "(empty)"))
        previous = text
    room = (columns - 2) // max(1, len(blocks)) - 2
    if side_by_side and len(blocks) > 1 and room >= MIN_COLUMN:
        cells = [[*wrap(names, room), *wrap(shown, room)] for names, shown in blocks]
        heads = [len(wrap(names, room)) for names, _ in blocks]
        for i in range(max(map(len, cells))):
            row = [pad(cell[i] if i < len(cell) else "", room) for cell in cells]
            if i >= max(heads):
                row = [_painted(part, color) for part in row]
            lines.append("  " + "  ".join(row).rstrip())
    else:
        for names, shown in blocks:
            lines += [_paint("  " + line, BOLD, color) for line in wrap(names, columns - 2)]
            lines += ["    " + _painted(line, color) for line in wrap(shown, columns - 4)]
    return lines


def _paint(text: str, code: str, color: bool) -> str:
    return f"{code}{text}{RESET}" if color else text


def _painted(line: str, color: bool) -> str:
    """The marks of one line in colour; a mark that runs over a line's end is coloured where it begins and ends."""
    if not color:
        return line
    for opening, closing, code in (("[-", "-]", RED), ("{+", "+}", GREEN)):
        line = line.replace(opening, code + opening).replace(closing, closing + RESET)
    return line + RESET
