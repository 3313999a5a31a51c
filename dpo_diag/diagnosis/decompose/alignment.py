"""Which tokens of chosen and rejected correspond: a longest common subsequence, and each token's role from it.

Roles of a response's tokens, in this order of precedence:
    end                the last token, where it is the end token of the set
    shared_prefix      before the first difference, the same on both sides
    first_difference   the first token that differs
    differing          after it, without a counterpart on the other side
    shared_after       after it, with a counterpart (the longest common subsequence of what follows)

DPOP (Pal et al. 2024, arXiv 2402.13228) expects the fall of chosen to sit after the first difference. Long free answers
share function words by chance: a `shared_after` token is one that an alignment pairs up, not one that means the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import LCSseq, Levenshtein

IntArray = npt.NDArray[np.int64]
ROLE_NAMES = ("shared_prefix", "first_difference", "differing", "shared_after", "end")
PREFIX, FIRST, DIFFERING, AFTER, END = range(5)
LARGEST = 200_000_000
"""Above this many token pairs (two answers of 14,000 tokens) the middle is not aligned: it counts as differing."""


def common_prefix(x: IntArray, y: IntArray) -> int:
    """Length of the common prefix of two token sequences."""
    n = min(x.size, y.size)
    different = np.flatnonzero(x[:n] != y[:n])
    return int(different[0]) if different.size else n


def matches(x: IntArray, y: IntArray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Marks of the tokens of x and of y that one longest common subsequence pairs up; shapes of x and y."""
    in_x, in_y = np.zeros(x.size, dtype=bool), np.zeros(y.size, dtype=bool)
    if x.size == 0 or y.size == 0 or x.size * y.size > LARGEST:
        return in_x, in_y
    for block in LCSseq.opcodes(y.tolist(), x.tolist()):
        if block.tag == "equal":
            in_y[block.src_start : block.src_end] = in_x[block.dest_start : block.dest_end] = True
    return in_x, in_y


def pair_roles(
    chosen: npt.ArrayLike, rejected: npt.ArrayLike, end_token: int | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """Role (index into ROLE_NAMES) of every token of both responses, shapes (n_chosen,), (n_rejected,).

    Equal responses are all prefix (and end). The token at the place of the first difference counts as such on both
    sides, even where it recurs later on the other one; if one response is the other's beginning, the shorter one has
    none. Empty responses give empty arrays.
    """
    x, y = np.asarray(chosen, dtype=np.int64), np.asarray(rejected, dtype=np.int64)
    prefix = common_prefix(x, y)
    rest_x, rest_y = x[prefix:], y[prefix:]
    # The common end is matched as a block: an alignment that scattered it would be as long but say less.
    suffix = common_prefix(rest_x[::-1], rest_y[::-1])
    # The first differing token is what it is, even where it recurs later on the other side.
    middle_x, middle_y = rest_x[1 : rest_x.size - suffix], rest_y[1 : rest_y.size - suffix]
    in_x, in_y = matches(middle_x, middle_y)
    roles = []
    for tokens, inside in ((x, in_x), (y, in_y)):
        role = np.full(tokens.size, DIFFERING, dtype=np.int8)
        role[:prefix] = PREFIX
        role[prefix + 1 : prefix + 1 + inside.size][inside] = AFTER
        if suffix:
            role[tokens.size - suffix :] = AFTER
        if tokens.size > prefix:
            role[prefix] = FIRST
        if end_token is not None and tokens.size and tokens[-1] == end_token:
            role[-1] = END
        roles.append(role)
    return roles[0], roles[1]


def edit_distance(x: npt.ArrayLike, y: npt.ArrayLike) -> int:
    """Levenshtein distance of two token sequences (insert, delete, replace cost 1)."""
    return int(Levenshtein.distance(np.asarray(x).tolist(), np.asarray(y).tolist()))
