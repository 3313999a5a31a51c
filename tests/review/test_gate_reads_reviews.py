"""A gate's rule over what people said: the win rate with its interval, people only, absent is no pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.gate.judge import Gate
from dpo_diag.gate.rules import load_rules
from dpo_diag.records import load_run
from dpo_diag.review import judgements
from dpo_diag.review.items import choose_items
from dpo_diag.review.judgements import JUDGE
from dpo_diag.stats import proportion
from tests.review.builders import judgement


def say(run_path: Path, a: str, outcomes: str) -> None:
    for item, outcome in zip(choose_items(load_run(run_path), a=a, b="40", n=len(outcomes)), outcomes, strict=True):
        judgements.append(run_path, judgement(item, outcome))


def test_a_win_rate_inside_its_noise_is_no_failure(run_path: Path) -> None:
    """3 of 9 against the reference: up to 0.65; 0 of 8 against step 20: up to 0.32 (Wilson). Six items are too few."""
    rule = {"review": "win_rate", "min": 0.5}
    assert Gate(run_path).judge(rule).status == "failed"  # nobody has judged: what cannot be seen does not pass
    assert Gate(run_path).judge(rule | {"missing": "skip"}).status == "skipped"
    say(run_path, "ref", "bbaaaa")
    few = Gate(run_path).judge(rule)
    assert few.status == "failed" and few.reason.startswith("not judged: n = 6: too few for an interval")
    assert Gate(run_path).judge(rule | {"decide": "point"}).value == pytest.approx(1 / 3)
    say(run_path, "ref", "bbbaaaaaa")
    unsure = Gate(run_path).judge(rule)
    assert unsure.status == "passed" and "reaches within the limit" in unsure.reason
    assert (unsure.value, unsure.n) == (pytest.approx(1 / 3), 9)
    assert (unsure.low, unsure.high) == pytest.approx(proportion(3, 9).bounds)
    say(run_path, "20", "aaaaaaaa")
    worse = Gate(run_path, "20").judge(rule)
    assert worse.status == "failed" and worse.value == 0 and worse.n == 8
    assert Gate(run_path, "0").judge(rule).status == "passed"  # the reference stands at step 0
    assert "nobody has judged its answers" in Gate(run_path, "10").judge(rule).reason


def test_a_judge_model_does_not_decide(run_path: Path) -> None:
    for item in choose_items(load_run(run_path), n=8):
        judgements.append(run_path, judgement(item, "a", "gpt", JUDGE))
    assert "nobody has judged" in Gate(run_path).judge({"review": "win_rate", "min": 0.5}).reason


def test_the_rule_is_checked(tmp_path: Path) -> None:
    for rule, told in (("{review: kappa, min: 0.5}", "expected win_rate"), ("{review: win_rate}", "without a limit")):
        file = tmp_path / "gate.yaml"
        file.write_text(f"rules: [{rule}]")
        with pytest.raises(DiagError, match=told):
            load_rules(file)
