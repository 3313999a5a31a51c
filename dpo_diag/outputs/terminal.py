"""Answers as text for a terminal: side by side or stacked, diffs readable without colour, nothing that acts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from dpo_diag.outputs.diff import Piece, marked, word_diff
from dpo_diag.styled import rendered, wrapped
from dpo_diag.text import plural, safe

MIN_COLUMN = 36
"""Cells that a column of answers needs; with less room they stand one below the other."""
REWRITTEN = 0.4
"""Below this share of unchanged characters (of the shorter answer) an answer is shown whole, named rewritten."""
_STYLES = {"same": "", "removed": "red", "added": "green"}


@dataclass(frozen=True)
class Layout:
    """How answers are shown.

    Attributes:
        columns: cells to fill.
        side_by_side: one column per distinct answer, if they fit; else one below the other.
        diff: mark what changed since the answer before it, as `[-old-]{+new+}`.
        color: also colour the marks.
        max_chars: characters shown of a prompt or an answer.
    """

    columns: int = 100
    side_by_side: bool = False
    diff: bool = True
    color: bool = False
    max_chars: int = 600


def answer_lines(entry: dict[str, Any], labels: dict[tuple[str, int], str], layout: Layout) -> list[str]:
    """One prompt and its answers as lines.

    Args:
        entry: of `compare`'s `prompts`.
        labels: (model, step) -> name of the checkpoints to show, in order.
    """
    tags, times, width = ", ".join(entry.get("tags") or []), entry["times_changed"], layout.columns
    changed = f"changed {plural(times, 'time')}" if times else "unchanged" if entry["changed"] is False else ""
    changed = f"{entry['outcome']}, {changed}" if entry["outcome"] in ("regression", "gain") else changed
    title = safe("  ".join(part for part in (f"[{entry['prompt_id']}]", changed, tags) if part), one_line=True)
    clipped = title if cell_len(title) <= width else set_cell_size(title, width - 1) + "…"
    lines = [Text(clipped, style="bold")]
    for name in ("prompt", "reference"):
        if entry.get(name) is not None:
            text = Text(safe(f"{name}: {entry[name]}".rstrip(), max_chars=layout.max_chars), style="dim")
            lines += _indented(wrapped(text, width - 2), 2)
    blocks = _blocks(entry, labels, layout)
    room = (width - 2) // max(1, len(blocks)) - 2
    if layout.side_by_side and len(blocks) > 1 and room >= MIN_COLUMN:
        cells = [[*wrapped(names, room), *wrapped(shown, room)] for names, shown in blocks]
        for i in range(max(map(len, cells))):
            row = [_filled(cell[i] if i < len(cell) else Text(), room) for cell in cells]
            lines += _indented([Text("  ").join(row)], 2)
    else:
        for names, shown in blocks:
            lines += [*_indented(wrapped(names, width - 2), 2), *_indented(wrapped(shown, width - 4), 4)]
    return rendered(lines, layout.color)


def _blocks(entry: dict[str, Any], labels: dict[tuple[str, int], str], layout: Layout) -> list[tuple[Text, Text]]:
    """(which checkpoints and what is known of it, the answer) of each distinct answer that the shown ones gave."""
    blocks: list[tuple[Text, Text]] = []
    previous: str | None = None
    for answer in entry["answers"]:
        keys = [(x["model"], x["step"]) for x in answer["looks"]]
        names = [labels[key] for key in keys if key in labels]
        if not names:
            continue
        text = safe(answer["text"], max_chars=layout.max_chars)
        facts, shown = _facts(answer), Text(text or "(empty)")
        if layout.diff and previous is not None:
            # Made safe first: an escape sequence must not hide in a piece, nor a mark be forged by splitting one.
            pieces = word_diff(previous, text)
            same = sum(len(p.text) for p in pieces if p.kind == "same")
            # Where little stayed, marks at every word only get in the way of reading the new answer.
            if same < REWRITTEN * min(len(previous), len(text)):
                facts.append("rewritten")
            elif pieces:
                shown = _marked(pieces)
        known = f" ({', '.join(facts)})" if facts else ""
        blocks.append((Text(" = ".join(names) + known, style="bold"), shown))
        previous = text
    return blocks


def _facts(answer: dict[str, Any]) -> list[str]:
    correct = answer.get("correct")
    score = [] if correct is None else [{1: "right", 0: "wrong"}.get(correct, f"{correct:.2f}")]
    return score + (["cut off by length"] if answer.get("finish_reason") == "length" else [])


def _marked(pieces: Sequence[Piece]) -> Text:
    return Text.assemble(*((marked([piece]), _STYLES[piece.kind]) for piece in pieces))


def _indented(lines: Iterable[Text], cells: int) -> list[Text]:
    return [Text(" " * cells) + line for line in lines]


def _filled(line: Text, columns: int) -> Text:
    return line + Text(" " * max(0, columns - line.cell_len))
