"""Coefficients between trainers, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import build_run
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.perplexity import Concentration
from dpo_diag.diagnosis.decompose.trajectory import TurningPoint
from dpo_diag.diagnosis.remedies import Remedy, dpop_lambda, nll_weights, suggest
from dpo_diag.diagnosis.verdict import Verdict
from dpo_diag.losses import LossSpec
from dpo_diag.stats import Interval


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


def suggested(path: Path, spec: LossSpec, label: str = "likelihood_displacement") -> dict[str, Remedy]:
    """Answers of 10 and 30 tokens, sums -10 and -60 at the start (of which `nll_weights` makes 1.1667). At the end a is
    -1 and 1, b -83 and -81: half of chosen below the reference, a mean margin of 82 nats, 8.2 at beta .1."""
    start = [-10.0, -60.0]
    run = build_run(path, {0: (start, start), 9: ([-11.0, -59.0], [-93.0, -141.0])}, n=[10, 30])
    turn = TurningPoint("ppl_seq_mean", 25, 49, 2.24, 2.736, Interval(0.2, 0.1, 0.3, 124), 0.0238, 0.0005)
    verdict = Verdict(label, "cannot_tell", "low", "")
    return {r.name: r for r in suggest(align(run), spec, verdict, [turn], Concentration(3, 124, 0.71))}


def test_suggestions_carry_the_runs_numbers(tmp_path: Path) -> None:
    remedies = suggested(tmp_path / "run", LossSpec(beta=0.1))
    assert "best at step 25 (2.240) and 2.736 at step 49" in remedies["stop earlier"].why
    sft = remedies["add an SFT (NLL) term on the chosen answers"]
    assert sft.settings["LLaMA-Factory"].startswith("pref_ftx: 1.17")
    beta = remedies["raise beta or lower the learning rate"].why
    assert "the mean margin is 8.2 at beta 0.1, i.e. 82 nats" in beta
    assert "50 %" in remedies["penalise chosen answers below the reference (DPOP)"].why
    assert "71 %" in remedies["look at the pairs that carry it"].why


def test_a_run_with_an_sft_term_gets_no_advice_to_add_one(tmp_path: Path) -> None:
    assert not any("SFT" in name for name in suggested(tmp_path / "run", LossSpec(types=("sigmoid", "sft"))))


def test_a_healthy_run_needs_no_remedy(tmp_path: Path) -> None:
    assert suggested(tmp_path / "run", LossSpec(beta=0.1), "healthy") == {}
