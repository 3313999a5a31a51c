"""What changed between two answers: where they part, and word by word."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from dpo_diag.outputs.words import diff_tokens

MAX_TOKENS = 2_000
"""Beyond so many pieces only the shared start and end are matched: difflib is quadratic, and models write megabytes."""


class Piece(NamedTuple):
    """A stretch of text that is in both answers, or in the old or the new one only."""

    kind: str
    """same | removed | added"""
    text: str


def first_difference(old: Sequence[int] | Sequence[str], new: Sequence[int] | Sequence[str]) -> int | None:
    """Index of the first position at which two sequences differ (the shorter's length if it is a prefix of the other);
    None if they are equal."""
    for i, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return i
    return None if len(old) == len(new) else min(len(old), len(new))


def word_diff(old: str, new: str) -> list[Piece]:
    """The two texts as pieces in reading order, a removed piece before the one added in its place.

    Same and removed pieces join to `old`, same and added ones to `new`; [] for two empty texts. A lone blank between
    two changes is taken into them, so that changed phrases stay whole.
    """
    a, b = diff_tokens(old), diff_tokens(new)
    ops: list[tuple[str, int, int, int, int]]
    if len(a) + len(b) <= MAX_TOKENS:
        ops = list(SequenceMatcher(None, a, b, autojunk=False).get_opcodes())
    else:
        start = first_difference(a, b)
        head = len(a) if start is None else start
        tail = first_difference(a[head:][::-1], b[head:][::-1])
        tail = 0 if tail is None else tail
        ops = [
            ("equal", 0, head, 0, head),
            ("replace", head, len(a) - tail, head, len(b) - tail),
            ("equal", len(a) - tail, len(a), len(b) - tail, len(b)),
        ]
    segments: list[tuple[str, str]] = []  # (old text, new text); equal where both are the same
    for tag, i1, i2, j1, j2 in ops:
        left, right = "".join(a[i1:i2]), "".join(b[j1:j2])
        if not left and not right:
            continue
        changed = tag != "equal"
        if segments and changed and segments[-1][0] != segments[-1][1]:
            segments[-1] = (segments[-1][0] + left, segments[-1][1] + right)
        else:
            segments.append((left, right))
    merged: list[tuple[str, str]] = []
    for i, (left, right) in enumerate(segments):
        between = left == right and left.isspace() and "\n" not in left and 0 < i < len(segments) - 1
        joins = merged and merged[-1][0] != merged[-1][1] and (between or left != right)
        if joins:
            merged[-1] = (merged[-1][0] + left, merged[-1][1] + right)
        else:
            merged.append((left, right))
    pieces: list[Piece] = []
    for left, right in merged:
        if left == right:
            pieces.append(Piece("same", left))
        else:
            pieces += [Piece(kind, text) for kind, text in (("removed", left), ("added", right)) if text]
    return pieces


def marked(pieces: Sequence[Piece], *, context: int | None = None) -> str:
    """The pieces as one text, `[-removed-]{+added+}`: readable without colour, as `git diff --word-diff` writes it.

    Args:
        context: characters of unchanged text to keep beside each change (the rest becomes …); None for all.
    """
    out = []
    for i, piece in enumerate(pieces):
        if piece.kind == "removed":
            out.append(f"[-{piece.text}-]")
        elif piece.kind == "added":
            out.append("{+" + piece.text + "+}")
        elif context is None or len(piece.text) <= 2 * context + 3:
            out.append(piece.text)
        else:
            head = piece.text[:context] if i else ""
            tail = piece.text[len(piece.text) - context :] if i < len(pieces) - 1 else ""
            out.append(f"{head} … {tail}")
    return "".join(out)
