"""Labels and the rule that harm needs more than likelihoods."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_diag.diagnosis.evidence import Measure
from dpo_diag.diagnosis.verdict import Facts, decide
from dpo_diag.stats import Interval

FELL = {"ppl_token": 1, "ppl_seq_mean": 1, "ppl_seq_geomean": 1}


def score(direction: str, kind: str = "score") -> tuple[Measure, str]:
    change = Interval(-0.3, -0.37, -0.22, 300)
    return Measure("accuracy", "held_out", kind, 0, 9, 0.7, 0.4, change, "m"), direction


def facts(**values: Any) -> Facts:
    given: dict[str, Any] = {"loss": -1, "perplexity": FELL, "chosen": -1, "n_pairs": 100, "has_intervals": True}
    return Facts(**(given | values))


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({}, "likelihood_displacement"),
        ({"perplexity": {"ppl_token": -1, "ppl_seq_mean": 1}}, "sign_depends_on_aggregator"),
        ({"perplexity": {"ppl_token": -1, "ppl_seq_mean": 0}}, "healthy"),
        ({"perplexity": {"ppl_token": -1}, "turned": True}, "late_divergence"),
        ({"loss": 0, "speaking": frozenset({"DVG009"})}, "not_learning"),
        ({"loss": 0}, "loss_unclear"),  # few rows, or a few pairs that outweigh the others' gain
        ({"loss": 1}, "not_learning"),
        # The loss of the pairs fell by 1e-5, beyond its noise: that is no success to report.
        ({"perplexity": {"ppl_token": -1}, "speaking": frozenset({"DVG009"})}, "not_learning"),
        ({"speaking": frozenset({"DVG008"})}, "dead_run"),
        ({"loss": None}, "loss_unknown"),
        ({"loss": None, "perplexity": {}, "chosen": None}, "cannot_tell"),
        ({"loss": None, "perplexity": {}, "chosen": None, "speaking": frozenset({"DVG011"})}, "broken_numbers"),
        ({"perplexity": {}}, "likelihood_displacement"),
        ({"perplexity": {}, "chosen": 0}, "healthy"),
        ({"perplexity": {}, "chosen": None}, "cannot_tell"),
        ({"perplexity": {}, "chosen": 0, "speaking": frozenset({"DVG007", "DVG010"})}, "reference_mismatch"),
        ({"perplexity": {}, "chosen": 1, "speaking": frozenset({"DVG002", "DVG010"})}, "rejected_collapse"),
        ({"perplexity": {}, "chosen": 1, "speaking": frozenset({"DVG010"})}, "saturated"),
        ({"perplexity": {}, "chosen": None, "speaking": frozenset({"DVG001", "DVG002"})}, "likelihood_displacement"),
        ({"perplexity": {}, "chosen": 1, "speaking": frozenset({"DVG001"})}, "likelihood_displacement"),
        ({"loss": 0, "speaking": frozenset({"DVG010"})}, "saturated"),
        ({"loss": 1, "speaking": frozenset({"DVG022"})}, "loss_rose"),
        ({"loss": 0, "speaking": frozenset({"DVG022"})}, "loss_unclear"),
        ({"perplexity": {}, "chosen": 1, "speaking": frozenset({"DVG011", "DVG016"})}, "healthy"),
    ],
)
def test_labels(values: dict[str, Any], label: str) -> None:
    assert decide(facts(**values)).label == label


@pytest.mark.parametrize(
    ("chosen", "codes", "loss", "harm"),
    [
        (1, {"DVG002"}, -1, "cannot_tell"),  # rejected collapse: outputs must say whether it is harm
        (1, {"DVG007"}, -1, "cannot_tell"),
        (1, {"DVG010"}, -1, "none"),
        (-1, {"DVG022"}, 1, "cannot_tell"),  # the loss rose and chosen fell: no clean bill of health
        (1, {"DVG022"}, 1, "none"),
        (1, {"DVG004"}, 0, "cannot_tell"),  # four of 120 pairs outweigh what the others gained
    ],
)
def test_no_clean_bill_where_a_check_speaks_of_the_run(chosen: int, codes: set[str], loss: int, harm: str) -> None:
    decision = decide(facts(perplexity={}, chosen=chosen, speaking=frozenset(codes), loss=loss))
    assert decision.harm == harm and decision.label != "healthy"


def test_likelihoods_alone_never_are_harm() -> None:
    decision = decide(facts())
    assert (decision.harm, decision.because) == ("cannot_tell", ())
    assert "no outputs and no task score" in decision.text


def test_a_score_that_fell_is_harm_and_is_cited() -> None:
    decision = decide(facts(evidence=[score("worse")]))
    assert (decision.harm, decision.confidence) == ("harmful", "high")
    assert "0.700 → 0.400" in decision.text and "n = 300" in decision.text
    assert decision.because[0][0].what == "accuracy"


def test_a_score_that_held_makes_the_fall_benign() -> None:
    assert decide(facts(evidence=[score("no_worse")])).harm == "benign"


def test_an_unclear_score_leaves_it_open() -> None:
    assert decide(facts(evidence=[score("unclear")])).harm == "cannot_tell"
    assert decide(facts(evidence=[score("no_worse"), score("unclear")])).harm == "cannot_tell"


def test_that_answers_still_end_is_no_proof_of_benefit() -> None:
    assert decide(facts(evidence=[score("no_worse", kind="unfinished")])).harm == "cannot_tell"


def test_a_healthy_run_has_no_harm_and_a_healthy_loss_no_excuse() -> None:
    assert decide(facts(perplexity={"ppl_token": -1})).harm == "none"
    assert decide(facts(perplexity={"ppl_token": -1}, evidence=[score("worse")])).harm == "harmful"


def test_means_alone_never_give_high_confidence() -> None:
    assert decide(facts(only_means=True, perplexity={})).confidence == "low"


def test_a_fall_inside_the_noise_is_not_called_healthy() -> None:
    """Rewards of chosen -0.001 to -0.276 over seven batches, interval -0.83 to +0.28: lower, not surely so."""
    facts = Facts(loss=-1, perplexity={}, chosen=0, only_means=True, chosen_lower_in_noise=True)
    assert decide(facts).label == "within_noise"
    assert decide(facts).harm == "cannot_tell"
    higher = Facts(loss=-1, perplexity={}, chosen=0, only_means=True)
    assert decide(higher).label == "healthy"
