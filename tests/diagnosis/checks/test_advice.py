"""Every line of advice: given where its conditions hold, withheld where one of them does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dpo_diag.diagnosis.checks import CheckContext, all_checks, run_checks
from dpo_diag.diagnosis.checks.shared import advice
from dpo_diag.diagnosis.checks.shared.advice import Advice, Condition, Situation, loss_direction
from dpo_diag.records import Run
from dpo_diag.thresholds import load_thresholds

BAD = {"DVG011": {}}
SIGMOID = {"types": ["sigmoid"], "beta": 0.1}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "SOUND": (
        {},
        [
            {"findings": BAD, "severities": {"DVG011": "error"}},
            {"findings": {"DVG028": {}}, "severities": {"DVG028": "error"}},
        ],
    ),
    "REFERENCE_RIGHT": ({}, [{"findings": {"DVG007": {}}}]),
    "TRAINED": ({}, [{"findings": {"DVG008": {}}}]),
    "FELL": ({"loss": -1}, [{"loss": 0}, {"loss": 1}, {"findings": {"DVG020": {}}}, {"findings": {"DVG009": {}}}]),
    "NOT_WORSE": ({}, [{"loss": 1}, {"findings": {"DVG020": {}}}]),
    "WENT_WRONG": ({"findings": {"DVG001": {}}}, [{"findings": {}}]),
    "ROSE": ({"loss": 1}, [{"loss": -1}, {"loss": None}]),
    "BETA_SMALL": ({"beta": 0.1}, [{"beta": 0.5}, {"beta": None}, {"per_token": True}, {"reference_free": True}]),
    "BETA_LARGE": ({"beta": 2.0}, [{"beta": 0.1}, {"beta": None}, {"per_token": True}]),
    "RATE_CAN_FALL": ({}, [{"learning_rate": 1e-7}]),
    "RATE_LOW": ({"learning_rate": 1e-6}, [{"learning_rate": None}, {"learning_rate": 1e-3}]),
    "RATE_HIGH": ({"learning_rate": 1e-3}, [{"learning_rate": None}, {"learning_rate": 1e-6}]),
    "RATE_UNKNOWN": ({}, [{"learning_rate": 1e-6}]),
    "NO_SFT_TERM": ({"types": ("sigmoid",)}, [{"types": ("sigmoid", "sft")}]),
    "UNBOUNDED": ({"types": ("sigmoid",)}, [{"types": ("ipo",)}, {"types": ()}]),
    "SUMS": ({}, [{"per_token": True}]),
    "WITH_REFERENCE": ({}, [{"reference_free": True}]),
    "NOT_MEASURED": ({}, [{"findings": {"DVG018": {}}}, {"findings": {"DVG025": {}}}]),
    "NOT_CLIPPED": ({"clipped_at": 0.0}, [{"clipped_at": 1.0}]),
    "SEVERAL_EPOCHS": ({"epochs": 3.0}, [{"epochs": 1.0}]),
    "PERPLEXITY_ORDERS": ({}, [{"findings": {"DVG029": {}}}]),
    "DISPLACED": ({"findings": {"DVG001": {}}}, [{"findings": {}}]),
}
"""Condition -> what makes it hold, and what each breaks it."""
OWN: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("DVG002", ""): ({"rejected_reward": {"value": -6.0}}, {"rejected_reward": {"value": -0.7}}),
    ("DVG006", ""): ({"found": ["cut responses", "end token", "answers without end"]}, {"found": []}),
    ("DVG022", "lowe"): ({"best_step": 0}, {"best_step": 20}),
    ("DVG022", ""): ({"best_step": 20}, {"best_step": 0}),
    ("DVG026", "trus"): ({"trainers_means": True}, {}),
    ("DVG029", ""): ({"margin_is_better": True}, {"margin_is_better": False}),
}
"""(code, first letters of the line) -> evidence with which its own conditions hold, and with which they do not."""
LIKELY: dict[str, Any] = {"learning_rate": 1e-3, "findings": {"DVG011": {"finite_before": True}}}
WHOLE: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("DVG011", "lower the learning rate:"): (LIKELY, {"findings": {"DVG011": {}}}),
    ("DVG011", "find the pairs behind it"): ({}, LIKELY),
    ("DVG011", "lower the learning rate"): ({"learning_rate": 1e-3}, LIKELY),
    ("DVG011", "where a lower learning r"): (LIKELY, {"learning_rate": 1e-6}),
}
"""(code, first letters of the line) -> the same for conditions that look at more than the check's evidence."""
THRESHOLDS = load_thresholds()
NAMES = {id(value): name for name, value in vars(advice).items() if isinstance(value, Condition)}
LINES = [(check.code, line) for check in all_checks() for line in check.advice]


def test_every_condition_has_a_case_for_and_one_against() -> None:
    assert set(NAMES.values()) == set(CASES)
    for name, (held, broken) in CASES.items():
        condition = getattr(advice, name)
        assert condition.holds(Situation(**held), THRESHOLDS), name
        for change in broken:
            assert not condition.holds(Situation(**(held | change)), THRESHOLDS), (name, change)


@pytest.mark.parametrize(("code", "line"), LINES, ids=[f"{code}-{line.text[:24]}" for code, line in LINES])
def test_a_line_is_given_only_where_all_its_conditions_hold(code: str, line: Advice) -> None:
    """Conditions that are a check's own look at its evidence: `OWN` has what makes them hold, and what breaks them."""
    holding, breaking = OWN.get((code, line.text[:4])) or OWN.get((code, "")) or ({}, {})
    more, broken = WHOLE.get((code, line.text[:24])) or ({}, {"findings": {code: breaking}})
    held: dict[str, Any] = {"types": ("sigmoid",), "findings": {code: holding}} | more
    for condition in line.when:
        change = CASES[NAMES[id(condition)]][0] if id(condition) in NAMES else {}
        held |= change | ({"findings": held["findings"] | change["findings"]} if "findings" in change else {})
    assert line.given(Situation(**held), THRESHOLDS)
    for condition in line.when:
        if id(condition) not in NAMES:
            assert not line.given(Situation(**(held | broken)), THRESHOLDS)
            continue
        for change in CASES[NAMES[id(condition)]][1]:
            assert not line.given(Situation(**(held | change)), THRESHOLDS), str(condition)


def test_only_what_is_about_nan_is_advised_while_numbers_are_nan() -> None:
    broken = Situation(findings={code: {} for code, _ in LINES}, severities={"DVG011": "error"}, learning_rate=1e-3)
    given = {code for code, line in LINES if line.given(broken, THRESHOLDS)}
    assert given - {"DVG028"} == {"DVG011"}


# --- whole runs -------------------------------------------------------------------------------------------------------


def tries(run: Run) -> dict[str, list[str]]:
    return {f["code"]: f["try"] for f in run_checks(CheckContext.from_run(run)) if f["outcome"] == "speaks"}


def test_a_run_that_rose_at_beta_2_and_rate_1e_3(means, noise) -> None:
    """0.693 up to 1.086: lower the rate and beta; nobody raises beta, stops early for the floor, or adds a term."""
    run = means({"loss": np.linspace(0.693, 1.086, 40) + noise(40, 0.02), "learning_rate": [1e-3] * 40},
                loss={"types": ["sigmoid"], "beta": 2.0}, training={"max_grad_norm": 1.0})  # fmt: skip
    found = tries(run)
    assert found["DVG020"] == ["lower the learning rate", "lower beta: each nat of difference counts beta times",
                               "check the data at the step where it turns"]  # fmt: skip
    assert not any("raise beta" in line or "SFT" in line for lines in found.values() for line in lines)


def test_a_reward_of_minus_0_7_is_not_told_of_minus_5(pairs, noise) -> None:
    """Rejected falls by 7 of 10 nats (70 %): a reward of -0.7 at beta 0.1, far from where the sigmoid gains nothing."""
    ref = -10.0 + noise(30, 0.1), -10.0 + noise(30, 0.1, 1)
    run = pairs({0: ref, 9: (ref[0] + 1, ref[1] - 7 + noise(30, 0.1, 2))}, ref=ref)
    (finding,) = (f for f in run_checks(CheckContext.from_run(run)) if f["code"] == "DVG002")
    assert finding["outcome"] == "speaks" and "5" not in "".join(finding["try"])
    assert "raise beta: the same loss is then reached with a smaller move" in finding["try"]


def test_a_wrong_reference_is_mended_first(means, noise) -> None:
    """The first loss is 1.2 at once, chosen falls: only the reference is advised about, and to look at the outputs."""
    t = np.linspace(0, 1, 40)
    run = means({"loss": 1.2 - 0.8 * t + noise(40, 0.01), "rewards/chosen": 3.0 - 2 * t, "rewards/rejected": 5 - 4 * t},
                every=1, loss={"types": ["sigmoid"], "beta": 0.1})  # fmt: skip
    found = tries(run)
    assert found["DVG007"]
    settings = ("SFT", "beta", "learning rate", "stop earlier")
    assert not [line for lines in found.values() for line in lines if any(word in line for word in settings)]


@pytest.mark.parametrize(
    ("losses", "start", "direction"),
    [
        ([0.6] * 40, None, 0), ([0.693 - 0.005 * i for i in range(40)], None, -1),
        ([0.693 + 0.005 * i for i in range(40)], None, 1), ([0.5, 0.4, *[0.3] * 38], SIGMOID, -1),
        ([0.69] * 3, None, None), ([math.nan] * 40, None, None),
    ],
)  # fmt: skip
def test_the_direction_of_the_loss(means, losses, start, direction) -> None:
    """A loss that is flat from its third row on fell, where it is known to start at ln 2; three rows tell nothing,
    nor do NaN."""
    ctx = CheckContext.from_run(means({"loss": losses}, **({"loss": start} if start else {})))
    assert loss_direction(ctx, THRESHOLDS) == direction
