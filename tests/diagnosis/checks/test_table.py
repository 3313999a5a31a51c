"""The table as a whole: keys, thresholds, robustness, strict JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_diag.diagnosis import checks
from dpo_diag.diagnosis.checks import CHECKS, OUTCOMES, SEVERITIES, CheckContext, all_checks, run_checks
from dpo_diag.diagnosis.checks.shared.pages import page
from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter, load_run
from dpo_diag.thresholds import load_thresholds

FOLDER = Path(checks.__file__).parent
KEYS = {"code", "title", "outcome", "reason", "severity", "evidence", "try", "sources"}


def test_codes_are_unique_ordered_and_explained() -> None:
    codes = [check.code for check in all_checks()]
    assert codes == sorted(set(codes)) and len(codes) == len(CHECKS)
    for code, check in CHECKS.items():
        assert code == check.code and check.severity in SEVERITIES and "harmful" not in check.title
        assert all((check.says, check.why, check.needs, check.false_alarms, check.try_next, check.since))
        assert all(check.evidence.values()) and check.bad.shows and check.good.shows


def test_an_empty_run_answers_every_check(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r")
    findings = run_checks(CheckContext.from_run(load_run(tmp_path / "r")))
    assert [f["code"] for f in findings] == [check.code for check in all_checks()]
    assert {f["outcome"] for f in findings} == {"not_applicable"}
    assert all(set(f) == KEYS and f["reason"] for f in findings)


@pytest.mark.parametrize("code", sorted(CHECKS))
def test_the_bad_example_speaks_and_the_good_one_is_silent(code: str, finding, tmp_path: Path) -> None:
    assert finding(CHECKS[code].bad.write(tmp_path / "bad"), code)["outcome"] == "speaks"
    assert finding(CHECKS[code].good.write(tmp_path / "good"), code)["outcome"] == "silent"


def test_a_threshold_can_be_set_and_a_wrong_name_gets_the_nearest(means, finding) -> None:
    run = means(held={"loss": [0.69, 0.6, 0.5], "ce/chosen": [1.0, 1.04, 1.1]})
    assert finding(run, "DVG001")["outcome"] == "speaks"
    assert finding(run, "DVG001", displacement_min_nats_per_token=0.2)["outcome"] == "silent"
    with pytest.raises(DiagError, match="did you mean spike_mads"):
        load_thresholds({"spike_mad": 5})
    with pytest.raises(DiagError, match="a threshold is a number"):
        load_thresholds({"spike_mads": "many"})


def thresholds_in(*files: Path) -> set[str]:
    """Names that the files read as t["name"]."""
    return {name for f in files for name in re.findall(r'\bt\["([a-z_0-9.]+)"\]', f.read_text(encoding="utf-8"))}


def test_every_threshold_is_used_and_every_used_one_is_declared() -> None:
    read = {name for check in CHECKS.values() for name in check.reads}
    assert {name for name in load_thresholds() if "." not in name} == {name for name in read if "." not in name}
    # Those of advice decide no finding.
    in_code = {name for name in thresholds_in(*FOLDER.rglob("*.py")) if not name.startswith("remedies.")}
    # The unit is part of the name; what a score's interval says is decided in diagnosis.measure.
    indirect = {f"displacement_min_{unit}" for unit in ("nats", "reward", "nats_per_token")}
    indirect |= {"verdict.least_harm", "confidence_scores", "least_for_interval"}
    assert in_code | indirect == read
    for code, check in CHECKS.items():
        (file,) = FOLDER.glob(f"{code.lower()}_*.py")
        assert thresholds_in(file) <= set(check.reads), code


def test_an_unknown_split_is_refused(means) -> None:
    with pytest.raises(DiagError, match="no such split"):
        CheckContext.from_run(means({"loss": [0.6] * 9}), split="evil")


def test_a_window_leaves_the_rest_out(means, finding) -> None:
    """NaN at step 15 only: outside the window it is not seen."""
    run = means({"loss": [0.69, 0.68, math.nan, 0.66, 0.65, 0.64]})
    assert finding(run, "DVG011")["outcome"] == "speaks"
    assert finding(run, "DVG011", from_step=20)["outcome"] == "silent"


NAMES = ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
         "logps/rejected", "grad_norm", "learning_rate", "entropy", "ce/chosen", "ppl_token/chosen", "nll_loss",
         "ppl_seq_mean/chosen", "score/accuracy"]  # fmt: skip
VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 0.693, math.nan, math.inf, -math.inf, 1e300, 1e-300]))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_log_breaks_a_check(tmp_path_factory, data: st.DataObject) -> None:
    """Any finite, infinite, constant, short or one-sided history: an answer for each check, in strict JSON."""
    rows = []
    for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True)):
        split = data.draw(st.sampled_from(["train", "eval", "eval_b", "held_out"]))
        constant = data.draw(st.booleans())
        values = data.draw(st.lists(VALUES, min_size=1, max_size=30))
        rows += [
            {"step": i, "split": split, "name": name, "value": values[0] if constant else v, "weight": 100.0}
            for i, v in enumerate(values)
        ]
    folder = tmp_path_factory.mktemp("fuzz") / "r"
    RunWriter(folder).write("history", rows)
    check_all(folder)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_pairs_break_a_check(tmp_path_factory, data: st.DataObject) -> None:
    """One to six pairs, any sums (also -inf and NaN), n of 0 or 1, with or without reference and counts."""
    size, steps = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    frames = []
    reference, counts = data.draw(st.booleans()), data.draw(st.sampled_from([None, 0, 1, 7]))
    sums = st.one_of(st.floats(-1e5, 0), st.sampled_from([0.0, -50.0, math.nan, -math.inf]))
    for role, at in [("policy", range(steps)), ("ref", range(int(reference)))]:
        for step in at:
            for side in ("chosen", "rejected"):
                frames.append(pd.DataFrame({
                    "step": step, "split": "eval", "role": role, "pair_id": [f"p{i}" for i in range(size)],
                    "side": side, "sum_logp": data.draw(st.lists(sums, min_size=size, max_size=size)),
                    "n_tokens": pd.Series([counts] * size, dtype="Int32"),
                }))  # fmt: skip
    folder = tmp_path_factory.mktemp("fuzz") / "r"
    RunWriter(folder).write("pairs", pd.concat(frames, ignore_index=True))
    check_all(folder)


def check_all(folder: Path) -> None:
    findings = run_checks(CheckContext.from_run(load_run(folder)))
    json.dumps(findings, allow_nan=False)
    assert len(findings) == len(CHECKS)
    for f in findings:
        assert f["outcome"] in OUTCOMES and f["severity"] in SEVERITIES
        assert f["reason"] and (f["outcome"] == "speaks" or not f["try"])


def test_a_threshold_has_the_reason_of_its_own_section() -> None:
    """Spikes and the live guards both have a `spike_window`: DVG016's page gives its own."""
    text = page(CHECKS["DVG016"])
    assert "| `spike_window` | 7 | rows on each side |" in text
