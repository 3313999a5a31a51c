"""Coefficients between trainers, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.diagnosis.remedies import dpop_lambda, nll_weights, suggest
from dpo_diag.losses import LossSpec


def test_nll_weights_by_hand() -> None:
    """Lengths 10 and 30, sums -10 and -60: batch-token 70/40 = 1.75; per sequence (1 + 2)/2 = 1.5; summed 35. TRL's
    weight 1 has the value 1.75, so per sequence 1.75/1.5 = 1.16667 and summed 1.75/35 = .05."""
    found = nll_weights(1.0, [10, 30], [-10.0, -60.0])
    assert found["llamafactory_pref_ftx"] == found["openrlhf_nll_loss_coef"] == pytest.approx(7 / 6)
    assert found["summed_logps"] == pytest.approx(0.05)
    assert found["shortest_answer_token_factor"] == 2.0


def test_by_lengths_alone() -> None:
    """Every token equally hard: the two means agree; the sum is mean(n) = 20 times as large."""
    found = nll_weights(0.5, [10, 30])
    assert (found["llamafactory_pref_ftx"], found["summed_logps"]) == (0.5, 0.025)


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.floats(0.01, 20.0)), min_size=1, max_size=30), st.floats(0.01, 10.0)
)  # fmt: skip
def test_translated_terms_have_the_same_value(answers: list[tuple[int, float]], weight: float) -> None:
    n = np.array([a for a, _ in answers], dtype=float)
    s = -n * np.array([c for _, c in answers])
    found = nll_weights(weight, n, s)
    value = weight * -s.sum() / n.sum()
    assert found["llamafactory_pref_ftx"] * float((-s / n).mean()) == pytest.approx(value)
    assert found["summed_logps"] * float((-s).mean()) == pytest.approx(value)


def test_empty_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        nll_weights(1.0, [])


def test_dpop_lambda_inside_and_outside_beta() -> None:
    assert dpop_lambda(0.1) == {"inside_beta": 50.0, "outside_beta": 5.0}


def test_suggestions_carry_the_runs_numbers() -> None:
    few = {"pairs": 3, "of": 124, "share": 0.71}
    turn = {"quantity": "ppl_seq_mean", "step": 25, "to_step": 49, "from": 2.24, "to": 2.736, "loss_from": 0.0238,
            "loss_to": 0.0005}  # fmt: skip
    numbers = {"turning_point": turn, "a_below_reference": 0.38, "margin": 8.2, "concentration": few}
    found = {r["name"]: r for r in suggest(LossSpec(beta=0.1), [10, 30], [-10.0, -60.0], numbers)}
    assert "step 25" in found["stop earlier"]["why"]
    sft = found["add an SFT (NLL) term on the chosen answers"]
    assert sft["settings"]["LLaMA-Factory"].startswith("pref_ftx: 1.17")
    assert "82 nats" in found["raise beta or lower the learning rate"]["why"]
    assert "38 %" in found["penalise chosen answers below the reference (DPOP)"]["why"]
    assert "71 %" in found["look at the pairs that carry it"]["why"]


def test_a_run_with_an_sft_term_is_not_told_to_add_one() -> None:
    names = [r["name"] for r in suggest(LossSpec(types=("sigmoid", "sft")), [10], [-5.0], {})]
    assert not any("SFT" in n for n in names)
