"""DVG018: chosen fell and the task did not get worse."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_diag.diagnosis.explanation import explain

FALLEN = {"loss": [0.69, 0.6, 0.5], "rewards/chosen": [0.0, -0.3, -0.6], "rewards/margins": [0.0, 0.4, 0.9]}


def test_a_score_that_rose(means, finding):
    """.618 -> .645 of 3000 questions: the interval of the change stays above -0.03."""
    run = means(held={**FALLEN, "score/accuracy@held_out": [0.618, 0.63, 0.645]}, weight=3000)
    found = finding(run, "DVG018")
    assert found["outcome"] == "speaks" and found["severity"] == "info"
    assert found["evidence"]["scores"][0]["change"]["value"] == pytest.approx(0.027)


def test_an_unchanged_score_is_benign_for_the_check_and_for_the_verdict(pairs, finding):
    """0.70 -> 0.70 of 1,200 questions: Newcombe's interval is about +-0.037, inside the margin of 0.05 of both."""
    ref = np.full(40, -20.0) - np.arange(40) / 10, np.full(40, -22.0)
    score = [{"step": s, "split": "held_out", "name": "score/accuracy", "value": 0.7, "weight": 1200.0} for s in (0, 9)]
    run = pairs({0: ref, 9: (ref[0] - 2 - np.arange(40) / 50, ref[1] - 8)}, ref=ref, history=score)
    assert finding(run, "DVG018")["outcome"] == "speaks"
    assert explain(run)["verdict"]["harm"] == "benign"


def test_a_score_that_fell(means, finding):
    run = means(held={**FALLEN, "score/accuracy@held_out": [0.7, 0.5, 0.4]}, weight=1000)
    assert finding(run, "DVG018")["outcome"] == "silent"


def test_too_few_questions(means, finding):
    run = means(held={**FALLEN, "score/accuracy@held_out": [0.62, 0.62, 0.62]}, weight=100)
    assert finding(run, "DVG018")["reason"].startswith("cannot tell")


def test_no_score(means, finding):
    found = finding(means(held=FALLEN), "DVG018")
    assert found["outcome"] == "not_applicable" and "score" in found["reason"]


def test_nothing_fell(means, finding):
    held = {"loss": [0.69, 0.5], "rewards/chosen": [0.0, 0.3], "score/accuracy@held_out": [0.6, 0.6]}
    run = means(held=held, weight=9)
    assert finding(run, "DVG018")["outcome"] == "silent"
