"""The Shapley split: hand numbers, exactness for every additive loss, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.diagnosis.decompose.loss import COLUMNS, split_losses, summarise
from dpo_diag.errors import DiagError
from dpo_diag.losses import DIVERGENCES, LOSSES, LossSpec, pair_losses

FINITE = st.floats(-80.0, 80.0)
PAIR = st.tuples(FINITE, FINITE, FINITE, FINITE, st.integers(1, 300), st.integers(1, 300), st.floats(-900.0, 0.0))


def frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """(a0, b0, a1, b1, n chosen, n rejected, chosen sum_logp at the first step) to the columns that a split reads."""
    a0, b0, a1, b1, n, m, s = (np.array(x, dtype=float) for x in zip(*rows, strict=True))
    return pd.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(len(rows))], "a0": a0, "b0": b0, "a1": a1, "b1": b1,
            "chosen_n_tokens_0": n, "chosen_n_tokens_1": n, "rejected_n_tokens_0": m, "rejected_n_tokens_1": m,
            "chosen_sum_logp_0": s, "chosen_sum_logp_1": s + (a1 - a0),
            "rejected_sum_logp_0": s - 2, "rejected_sum_logp_1": s - 2 + (b1 - b0),
            "chosen_beta_0": 0.3 + 0.1 * np.tanh(a0), "chosen_beta_1": 0.3 + 0.1 * np.tanh(b1),
            "chosen_weight_0": 0.5 + 0.1 * np.tanh(a0), "chosen_weight_1": 0.5 + 0.1 * np.tanh(a1),
        }
    )  # fmt: skip


def test_sigmoid_by_hand() -> None:
    """beta 1, (a, b) from (0, 0) to (1, -1): f = log(1 + exp(-(a - b))) is .693147 -> .126928 and .313262 where one
    side alone moved, so each part is 1/2 [(.313262 - .693147) + (.126928 - .313262)] = -.283110."""
    rows = split_losses(LossSpec(beta=1.0), frame([(0, 0, 1, -1, 1, 1, -1)]))
    assert rows["chosen_part"][0] == pytest.approx(-0.283110, abs=1e-6)
    assert rows["rejected_part"][0] == pytest.approx(-0.283110, abs=1e-6)
    assert rows["delta"][0] == pytest.approx(0.126928 - 0.693147, abs=1e-6)


def test_coefficients_that_moved_have_a_part_of_their_own() -> None:
    """The same pair, beta from 1 to 2: under 2 the loss at the second step is log(1 + e^-4) = .018150, so each side is
    -.337499 there and -.283110 under 1, -.310304 in the mean; at the first step beta changes nothing, at the second
    .018150 - .126928, half of which is the coefficient's: -.054389."""
    pairs = frame([(0, 0, 1, -1, 1, 1, -1)])
    rows = split_losses(LossSpec(beta=1.0), pairs, LossSpec(beta=2.0))
    assert rows["chosen_part"][0] == rows["rejected_part"][0] == pytest.approx(-0.310304, abs=1e-6)
    assert rows["coefficient_part"][0] == pytest.approx(-0.054389, abs=1e-6)
    assert rows["delta"][0] == pytest.approx(0.018150 - 0.693147, abs=1e-6) and abs(rows["residual"][0]) < 1e-15
    summary, _ = summarise(LossSpec(beta=1.0), pairs, LossSpec(beta=2.0))
    assert summary["coefficients"] == {"beta": [1.0, 2.0]} and summary["beta"] == 2.0
    assert "coefficient_part" not in summarise(LossSpec(beta=1.0), pairs, LossSpec(beta=1.0))[0]


def test_a_pairs_own_beta_is_such_a_coefficient() -> None:
    """The same two steps, the pair's own beta 1 at the first and 2 at the second: the same parts. A pair whose beta
    nobody recorded is left out, and where no pair has one the split says what is missing."""
    pairs = frame([(0, 0, 1, -1, 1, 1, -1)] * 2).assign(chosen_beta_0=1.0, chosen_beta_1=[2.0, math.nan])
    spec = LossSpec(types=("epsilon_dpo",), beta=1.0)
    summary, rows = summarise(spec, pairs)
    assert rows["chosen_part"].tolist() == rows["rejected_part"].tolist() == [pytest.approx(-0.310304, abs=1e-6)]
    assert summary["coefficient_part"] == pytest.approx(-0.054389, abs=1e-6)
    assert (summary["coefficients"], summary["pair_beta"], summary["n_pairs"]) == ({}, [1.0, 2.0], 1)
    bare = pairs.drop(columns=["chosen_beta_0", "chosen_beta_1"])
    assert "the pairs' own betas" in summarise(spec, bare)[0]["not_applicable"]


def test_a_side_that_did_not_move_has_no_part() -> None:
    """Only the chosen side moves: the whole change is its own, whatever the rejected side's level."""
    rows = split_losses(LossSpec(beta=0.1), frame([(0, -30, 5, -30, 1, 1, -9), (2, 7, -4, 7, 1, 1, -9)]))
    assert rows["rejected_part"].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(rows["chosen_part"], rows["delta"], rtol=1e-12)


def test_sft_term_belongs_to_chosen_and_is_the_batch_token_mean() -> None:
    """Two pairs, n 10 and 30, sums -10, -60 -> -8, -57 (a +2, +3): the term is 70/40 = 1.75 -> 65/40 = 1.625."""
    spec = LossSpec(types=("sft",), weights=(2.0,))
    pairs = frame([(0, 0, 2, 0, 10, 9, -10), (0, 0, 3, 0, 30, 9, -60)])
    summary, rows = summarise(spec, pairs)
    assert (summary["from"], summary["to"]) == (pytest.approx(3.5), pytest.approx(3.25))
    assert summary["chosen_part"] == pytest.approx(-0.25)
    assert rows["rejected_part"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [name for name, loss in LOSSES.items() if loss.formula])
@settings(max_examples=12, deadline=None)
@given(rows=st.lists(PAIR, min_size=1, max_size=12), beta=st.floats(0.01, 2.0))
def test_every_additive_loss_adds_up(kind: str, rows: list[tuple[Any, ...]], beta: float) -> None:
    pairs = frame(rows)
    summary, split = summarise(LossSpec(types=(kind,), beta=beta, label_smoothing=0.1), pairs)
    if "not_applicable" in summary:
        raise AssertionError(summary)
    size = np.maximum(split["chosen_part"].abs() + split["rejected_part"].abs(), split["loss_from"].abs())
    assert (split["residual"].abs() <= 1e-9 * np.maximum(size, 1e-300)).all()
    scale = max(abs(summary["chosen_part"]) + abs(summary["rejected_part"]), abs(summary["from"]))
    assert abs(summary["residual"]) <= 1e-9 * max(scale, 1e-300)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_divergences_add_up(divergence: str) -> None:
    spec = LossSpec(f_divergence_type=divergence, beta=0.3)
    rows = split_losses(spec, frame([(0, 0, 1.5, -2, 5, 5, -9), (-1, 2, -3, 0.5, 5, 5, -9)]))
    np.testing.assert_allclose(rows["chosen_part"] + rows["rejected_part"], rows["delta"], rtol=1e-12)
    assert (rows["delta"] != 0).all()


def test_swapping_the_sides_swaps_the_parts() -> None:
    """sigmoid sees a - b: with both sides exchanged and negated, the parts change places."""
    spec = LossSpec(beta=0.2)
    one = split_losses(spec, frame([(1, -2, 3, -7, 5, 5, -9)]))
    other = split_losses(spec, frame([(2, -1, 7, -3, 5, 5, -9)]))
    assert other["chosen_part"][0] == pytest.approx(one["rejected_part"][0], rel=1e-12)
    assert other["rejected_part"][0] == pytest.approx(one["chosen_part"][0], rel=1e-12)


def test_wpo_weight_stands_apart_and_adds_up() -> None:
    spec = LossSpec(use_weighting=True, beta=0.1)
    pairs = frame([(0, 0, 4, -9, 5, 5, -9), (1, 3, -6, -2, 5, 5, -9)])
    summary, rows = summarise(spec, pairs)
    whole = rows["chosen_part"] + rows["rejected_part"] + rows["weight_part"]
    np.testing.assert_allclose(whole, rows["delta"], rtol=1e-12)
    expected = pair_losses(spec, pairs["a1"], pairs["b1"], weight=pairs["chosen_weight_1"])
    np.testing.assert_allclose(rows["loss_to"], expected, rtol=1e-12)
    assert summary["weight_part"] != 0.0


@pytest.mark.parametrize("kind", [name for name, loss in LOSSES.items() if loss.formula is None])
def test_coupled_losses_are_refused_by_name(kind: str) -> None:
    with pytest.raises(DiagError, match=f"{kind} couples"):
        split_losses(LossSpec(types=(kind,)), frame([(0, 0, 1, 1, 1, 1, -1)]))


def test_infinite_pairs_are_named_and_the_rest_is_split() -> None:
    pairs = frame([(0, 0, 1, -1, 1, 1, -1), (0, 0, -math.inf, -1, 1, 1, -1)])
    summary, rows = summarise(LossSpec(beta=1.0), pairs)
    assert summary["n_pairs"] == 1 and summary["pairs_left_out"] == 1
    assert summary["left_out_pair_ids"] == ["p1"]
    assert summary["delta"] == pytest.approx(-0.566219, abs=1e-6)
    assert len(rows) == 1


def test_nothing_to_split_says_why() -> None:
    assert summarise(LossSpec(), frame([(0, 0, 0, 0, 1, 1, -1)]).iloc[:0])[0] == {
        "not_applicable": "no pair is recorded at both steps"
    }
    unknown = frame([(0, 0, 0, 0, 1, 1, -1)]).assign(a0=math.nan, b0=math.nan, a1=math.nan, b1=math.nan)
    summary, rows = summarise(LossSpec(), unknown)
    assert "no reference" in summary["not_applicable"]
    assert list(rows.columns) == list(COLUMNS) and rows.empty


def test_ipo_needs_token_counts() -> None:
    pairs = frame([(0, 0, 1, -1, 4, 4, -1)]).assign(chosen_n_tokens_0=math.nan, chosen_n_tokens_1=math.nan)
    assert "token counts" in summarise(LossSpec(types=("ipo",)), pairs)[0]["not_applicable"]
