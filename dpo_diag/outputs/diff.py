"""What changed between two answers: where they part, and word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import LCSseq

from dpo_diag.outputs.words import diff_tokens

MAX_TOKENS = 20_000
"""Beyond so many pieces only the shared start and end are matched: the alignment's bits take 12 MB for so many, four
times that for twice as many, and models write megabytes."""


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
    stretches = _aligned(diff_tokens(old), diff_tokens(new))
    merged: list[tuple[str, str]] = []
    for i, (left, right) in enumerate(stretches):
        lone_blank = left.isspace() and "\n" not in left and i < len(stretches) - 1
        if merged and merged[-1][0] != merged[-1][1] and (left != right or lone_blank):
            merged[-1] = (merged[-1][0] + left, merged[-1][1] + right)
        else:
            merged.append((left, right))
    pieces: list[Piece] = []
    for left, right in merged:
        same = left == right
        pieces += [Piece("same", left)] if same else [Piece("removed", left), Piece("added", right)]
    return [piece for piece in pieces if piece.text]


def _aligned(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """(old text, new text) of each stretch in reading order; the same where it stayed, one empty where it did not."""
    if len(a) + len(b) <= MAX_TOKENS:
        spans = [(op.src_start, op.src_end, op.dest_start, op.dest_end) for op in LCSseq.opcodes(a, b)]
    else:
        head = first_difference(a, b) or 0
        tail = first_difference(a[head:][::-1], b[head:][::-1]) or 0
        i, j = len(a) - tail, len(b) - tail
        spans = [(0, head, 0, head), (head, i, head, j), (i, len(a), j, len(b))]
    return [("".join(a[i1:i2]), "".join(b[j1:j2])) for i1, i2, j1, j2 in spans]


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
