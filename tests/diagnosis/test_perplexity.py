"""Perplexity splits: hand numbers and exactness on random and adversarial responses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.diagnosis.decompose.perplexity import (
    Concentration,
    concentration,
    logarithmic_mean,
    pair_contributions,
    rank_pairs,
    split_perplexity,
)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

RESPONSE = st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 50.0), st.integers(1, 3000), st.integers(1, 3000))
SETS = st.one_of(
    st.lists(RESPONSE, min_size=1, max_size=1),
    st.lists(RESPONSE, min_size=1, max_size=40),
    st.tuples(RESPONSE, st.integers(1, 20)).map(lambda t: [t[0]] * t[1]),
    st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 50.0), st.just(1), st.just(1)), min_size=1, max_size=20),
    st.lists(st.tuples(st.sampled_from([0.0, 1e-9, 50.0]), st.sampled_from([0.0, 50.0]), st.integers(1, 9),
                       st.integers(1, 9)), min_size=1, max_size=20),
)  # fmt: skip


def arrays(rows: list[tuple[float, float, int, int]]) -> Arrays:
    ce0, ce1, n0, n1 = (np.array(x, dtype=float) for x in zip(*rows, strict=True))
    return -ce0 * n0, n0, -ce1 * n1, n1


def close(total: float, parts: float, scale: float) -> None:
    """Residual under 1e-9 of the total, plus the rounding of the two logs that the total is a difference of."""
    assert abs(total - parts) <= 1e-9 * abs(total) + 1e-13 * max(1.0, scale)


def test_aggregation_alone_flips_the_sign() -> None:
    """CE [1, 1, 9, 1] -> [4, 4, 4, 4]: level 3 -> 4 rises by 1; log 2027.81 = 7.61471, so dispersion 4.61471 -> 0 and
    log ppl_seq_mean falls by 3.61471 although every average answer became harder."""
    rows = [(1, 4, 5, 5), (1, 4, 5, 5), (9, 4, 5, 5), (1, 4, 5, 5)]
    split = split_perplexity(*arrays(rows))
    seq = split["ppl_seq_mean"]
    assert (seq["from"], seq["to"]) == (pytest.approx(2027.81, abs=0.005), pytest.approx(54.598, abs=0.001))
    assert seq["level"] == pytest.approx(1.0)
    assert seq["dispersion"] == pytest.approx(-4.61471, abs=1e-5)
    assert seq["dlog"] == pytest.approx(-3.61471, abs=1e-5)
    assert split["ppl_seq_geomean"]["dlog"] == pytest.approx(1.0)
    assert split["ppl_token"]["length_weight"] == pytest.approx(0.0, abs=1e-12)


def test_shares_are_shares_of_the_change_of_the_perplexity() -> None:
    """The same case: mean of exp changes by 54.598 - 2027.810 = -1973.212; the third response alone changes it by
    (54.598 - 8103.084) / 4 = -2012.121, i.e. 1.01972 of it; each other one by +12.970, i.e. -0.00657."""
    parts = pair_contributions(*arrays([(1, 4, 5, 5), (1, 4, 5, 5), (9, 4, 5, 5), (1, 4, 5, 5)]))
    np.testing.assert_allclose(parts["share_of_rise"], [-0.00657, -0.00657, 1.01972, -0.00657], atol=1e-5)
    table = rank_pairs(parts)
    assert table["share_of_rise"].iloc[0] == pytest.approx(1.01972, abs=1e-5)
    assert table["cumulative_share"].iloc[-1] == pytest.approx(1.0)
    assert concentration(table).pairs == 1


def test_three_of_124_pairs_carry_71_percent() -> None:
    """121 responses rise from perplexity 2 to 2.1 (0.1 each, 12.1 in all), three from 2 to 2 + x with 3x = 71 % of the
    whole: x = 12.1 * 0.71 / 0.29 / 3 = 9.8747."""
    x = 12.1 * 0.71 / 0.29 / 3
    rows = [(math.log(2), math.log(2.1), 7, 7)] * 121 + [(math.log(2), math.log(2 + x), 7, 7)] * 3
    table = rank_pairs(pair_contributions(*arrays(rows)))
    assert table["cumulative_share"].iloc[2] == pytest.approx(0.71, abs=1e-9)
    assert concentration(table, 0.70) == Concentration(3, 124, pytest.approx(0.71))


@settings(max_examples=40, deadline=None)
@given(SETS)
def test_splits_add_up(rows: list[tuple[float, float, int, int]]) -> None:
    given_arrays = arrays(rows)
    parts = pair_contributions(*given_arrays)
    split = split_perplexity(*given_arrays)
    for name, row in split.items():
        scale = 100.0 if name == "ppl_token" else 50.0
        assert abs(row["residual"]) <= 1e-9 * abs(row["dlog"]) + 1e-13 * scale
        column = {"ppl_token": "token", "ppl_seq_mean": "seq_mean", "ppl_seq_geomean": "level"}[name]
        close(row["dlog"], float(parts[column].sum()), scale)
    close(split["ppl_seq_mean"]["dispersion"], float(parts["dispersion"].sum()), 100.0)
    close(split["ppl_token"]["length_weight"], float(parts["length_weight"].sum()), 100.0)
    if parts["share_of_rise"].notna().all():
        gross = float(parts["share_of_rise"].abs().sum())
        assert float(parts["share_of_rise"].sum()) == pytest.approx(1.0, abs=1e-12 * max(1.0, gross))


@settings(max_examples=40, deadline=None)
@given(SETS)
def test_reversing_the_steps_negates_every_part(rows: list[tuple[float, float, int, int]]) -> None:
    s0, n0, s1, n1 = arrays(rows)
    forth, back = pair_contributions(s0, n0, s1, n1), pair_contributions(s1, n1, s0, n0)
    for column in ("level", "dispersion", "seq_mean", "length_weight", "token"):
        np.testing.assert_allclose(forth[column], -back[column], rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SETS, st.randoms())
def test_order_of_pairs_changes_nothing(rows: list[tuple[float, float, int, int]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = split_perplexity(*arrays(rows)), split_perplexity(*arrays(shuffled))
    for name in one:
        assert one[name]["dlog"] == pytest.approx(other[name]["dlog"], rel=1e-9, abs=1e-11)


def test_cross_entropies_beyond_exp_keep_their_logs() -> None:
    """CE 1000 -> 1001: the perplexity overflows to infinity, its log-change is 1 all the same."""
    split = split_perplexity([-1000.0], [1.0], [-1001.0], [1.0])
    assert split["ppl_seq_mean"]["to"] == math.inf
    assert split["ppl_seq_mean"]["dlog"] == pytest.approx(1.0)
    assert pair_contributions([-1000.0], [1.0], [-1001.0], [1.0])["seq_mean"][0] == pytest.approx(1.0)


def test_no_change_has_no_shares() -> None:
    parts = pair_contributions([-1.0, -2.0], [2.0, 2.0], [-1.0, -2.0], [2.0, 2.0])
    assert parts["share_of_rise"].isna().all()
    assert concentration(rank_pairs(parts)) == Concentration(None, 2, None)


def test_empty_set() -> None:
    parts = pair_contributions([], [], [], [])
    assert parts.empty and "share_of_rise" in parts
    assert all(math.isnan(v) for row in split_perplexity([], [], [], []).values() for v in row.values())


def test_changed_token_counts_are_length_weight() -> None:
    """CE stays (1, 3), n (10, 10) -> (10, 5): log ppl_token 2 -> (10 + 15)/15 = 1.6667, all of it length weight."""
    split = split_perplexity([-10.0, -30.0], [10.0, 10.0], [-10.0, -15.0], [10.0, 5.0])["ppl_token"]
    assert split["level"] == pytest.approx(0.0)
    assert split["length_weight"] == pytest.approx(-1 / 3)
    parts = pair_contributions([-10.0, -30.0], [10.0, 10.0], [-10.0, -15.0], [10.0, 5.0])
    assert parts["token"].sum() == pytest.approx(-1 / 3)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_logarithmic_mean_is_symmetric_and_bounded(p: float, q: float) -> None:
    value = logarithmic_mean(p, q)
    assert value == logarithmic_mean(q, p)
    assert 0 < value <= 1
