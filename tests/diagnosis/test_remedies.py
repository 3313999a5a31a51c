"""Coefficients between trainers, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import build_run
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.checks.shared.advice import Situation
from dpo_diag.diagnosis.decompose.perplexity import Concentration
from dpo_diag.diagnosis.decompose.trajectory import TurningPoint
from dpo_diag.diagnosis.remedies import Material, Remedy, dpop_lambda, nll_weights, suggest
from dpo_diag.diagnosis.verdict import Verdict
from dpo_diag.losses import LossSpec
from dpo_diag.stats import Interval
from dpo_diag.thresholds import load_thresholds


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


FELL = Situation(loss=-1, beta=0.1, types=("sigmoid",), learning_rate=5e-6, findings={"DVG001": {}})


def suggested(path: Path, situation: Situation = FELL, harm: str = "cannot_tell") -> dict[str, Remedy]:
    """Answers of 10 and 30 tokens, sums -10 and -60 at the start (of which `nll_weights` makes 1.1667). At the end a is
    -1 and 1, b -83 and -81: half of chosen below the reference, a mean margin of 82 nats, 8.2 at beta .1."""
    start = [-10.0, -60.0]
    run = build_run(path, {0: (start, start), 9: ([-11.0, -59.0], [-93.0, -141.0])}, n=[10, 30])
    turn = TurningPoint("ppl_seq_mean", 25, 49, 2.24, 2.736, Interval(0.2, 0.1, 0.3, 124), 0.0238, 0.0005)
    few, spec = Concentration(3, 124, 0.71), LossSpec(types=situation.types, beta=situation.beta or 0.1)
    material = Material(align(run), spec, [turn], few, situation, load_thresholds())
    return {r.name: r for r in suggest(material, Verdict("likelihood_displacement", harm, "low", ""))}


SFT, DPOP = "add an SFT (NLL) term on the chosen answers", "penalise chosen answers below the reference (DPOP)"
PAIRS = "look at the pairs that carry it"


def test_suggestions_carry_the_runs_numbers(tmp_path: Path) -> None:
    """82 nats at beta .1 are a margin of 8.2; at .5 the same margin needs 16.4. A third of 5e-6 is 2e-6."""
    remedies = suggested(tmp_path / "run")
    assert list(remedies) == ["stop earlier", SFT, "raise beta", "lower the learning rate", DPOP, PAIRS]
    assert "best at step 25 (2.240) and 2.736 at step 49" in remedies["stop earlier"].why
    assert remedies[SFT].settings["LLaMA-Factory"].startswith("pref_ftx: 1.17")
    beta = remedies["raise beta"]
    assert "the mean margin is 8.20 at beta 0.1, i.e. 82 nats" in beta.why
    assert "at beta 0.5 the same margin needs 16.4" in beta.why and beta.do == "try beta 0.2 and 0.5"
    rate = remedies["lower the learning rate"]
    assert "the peak learning rate was 5e-06" in rate.why and rate.do == "try 2e-06" and "full fine" not in rate.why
    assert "50 %" in remedies[DPOP].why
    assert "71 %" in remedies[PAIRS].why


def test_a_loss_that_rose_at_a_large_beta_and_rate(tmp_path: Path) -> None:
    """Beta 2, rate 1e-3, loss up: both are to fall, and nothing is said that fits a loss that fell."""
    rose = replace(FELL, loss=1, beta=2.0, learning_rate=1e-3)
    remedies = suggested(tmp_path / "run", rose)
    assert list(remedies) == ["stop earlier", "lower beta", "lower the learning rate", PAIRS]
    assert "the loss rose at beta 2" in remedies["lower beta"].why
    assert "0.001; full fine-tuning takes 5e-7" in remedies["lower the learning rate"].why
    assert remedies["lower the learning rate"].do == "try 0.0001"


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"beta": 0.5}, ["stop earlier", SFT, "lower the learning rate", DPOP, PAIRS]),
        ({"beta": None}, ["stop earlier", SFT, "lower the learning rate", PAIRS]),
        ({"types": ("sigmoid", "sft")}, ["stop earlier", "raise beta", "lower the learning rate", DPOP, PAIRS]),
        ({"types": ("ipo",), "per_token": True}, ["stop earlier", SFT, "lower the learning rate", PAIRS]),
        ({"learning_rate": 5e-8}, ["stop earlier", SFT, "raise beta", DPOP, PAIRS]),
        ({"findings": {"DVG001": {}, "DVG007": {}}}, ["stop earlier", PAIRS]),
        ({"findings": {"DVG001": {}, "DVG008": {}}}, []),
        ({"findings": {"DVG001": {}, "DVG011": {}}, "severities": {"DVG011": "error"}}, []),
        ({"findings": {"DVG001": {}, "DVG028": {}}, "severities": {"DVG028": "error"}}, []),
    ],
)
def test_each_remedy_has_its_conditions(tmp_path: Path, changed: dict[str, Any], left: list[str]) -> None:
    """Beta in the published range, unknown, an SFT term already, a per-token loss, a rate below 1e-7, a wrong
    reference, a dead run, NaN at the end, implausible numbers."""
    assert list(suggested(tmp_path / "run", replace(FELL, **changed))) == left


def test_a_run_in_which_nothing_went_wrong_needs_no_remedy(tmp_path: Path) -> None:
    """The loss fell, or is not known, and chosen did not: nothing is advised, whatever the headline; harm by people's
    word alone is."""
    assert suggested(tmp_path / "a", replace(FELL, findings={})) == {}
    assert suggested(tmp_path / "b", replace(FELL, findings={}, loss=None)) == {}
    assert suggested(tmp_path / "c", replace(FELL, findings={}), "harmful")
