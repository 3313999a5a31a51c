"""Alignment against plain dynamic programming, roles by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.diagnosis.decompose.alignment import ROLE_NAMES, edit_distance, matches, pair_roles

TOKENS = st.lists(st.integers(0, 4), max_size=25)


def lcs_length(x: list[int], y: list[int]) -> int:
    table = np.zeros((len(x) + 1, len(y) + 1), dtype=int)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def levenshtein(x: list[int], y: list[int]) -> int:
    row = list(range(len(y) + 1))
    for i, a in enumerate(x):
        row, last = [i + 1], row
        for j, b in enumerate(y):
            row.append(min(last[j + 1] + 1, row[j] + 1, last[j] + (a != b)))
    return row[-1]


def names(roles: np.ndarray) -> str:
    """One letter a token: p prefix, f first difference, d differing, s shared after, e end."""
    return "".join({"shared_prefix": "p", "first_difference": "f", "differing": "d", "shared_after": "s", "end": "e"}[
        ROLE_NAMES[r]] for r in roles)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(TOKENS, TOKENS)
def test_matches_are_a_longest_common_subsequence(x: list[int], y: list[int]) -> None:
    in_x, in_y = matches(np.array(x, dtype=np.int64), np.array(y, dtype=np.int64))
    assert [t for t, m in zip(x, in_x, strict=True) if m] == [t for t, m in zip(y, in_y, strict=True) if m]
    assert int(in_x.sum()) == lcs_length(x, y)


@settings(max_examples=80, deadline=None)
@given(TOKENS, TOKENS)
def test_edit_distance_is_levenshtein(x: list[int], y: list[int]) -> None:
    assert edit_distance(x, y) == levenshtein(x, y)


def test_roles_by_hand() -> None:
    """7 8 | 1 5 6 4 2 against 7 8 | 3 6 2: prefix 7 8; first differences 1 and 3; common end 2 (the end token); of the
    middles (5 6 4) and (6) the 6 is shared."""
    chosen, rejected = pair_roles([7, 8, 1, 5, 6, 4, 2], [7, 8, 3, 6, 2], end_token=2)
    assert (names(chosen), names(rejected)) == ("ppfdsde", "ppfse")


def test_equal_answers_are_all_prefix() -> None:
    chosen, rejected = pair_roles([5, 6, 2], [5, 6, 2], end_token=2)
    assert (names(chosen), names(rejected)) == ("ppe", "ppe")


def test_an_answer_that_only_begins_the_other_has_no_first_difference() -> None:
    chosen, rejected = pair_roles([5, 6], [5, 6, 7, 8])
    assert (names(chosen), names(rejected)) == ("pp", "ppfd")


def test_one_token_answers() -> None:
    chosen, rejected = pair_roles([5], [6])
    assert (names(chosen), names(rejected)) == ("f", "f")
    chosen, rejected = pair_roles([], [6])
    assert (names(chosen), names(rejected)) == ("", "f")


def test_last_token_is_an_end_only_if_it_is_the_end_token() -> None:
    chosen, rejected = pair_roles([1, 9], [3, 2], end_token=2)
    assert (names(chosen), names(rejected)) == ("fd", "fe")


@settings(max_examples=80, deadline=None)
@given(TOKENS, TOKENS)
def test_shared_tokens_pair_up(x: list[int], y: list[int]) -> None:
    """Both sides have the same prefix, and every token has a role."""
    chosen, rejected = pair_roles(x, y)
    assert len(chosen) == len(x) and len(rejected) == len(y)
    assert (chosen == 0).sum() == (rejected == 0).sum()
    assert (chosen == 1).sum() == (len(x) > (chosen == 0).sum())
