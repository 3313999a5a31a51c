"""The gate: a change inside its noise is no failure, what cannot be seen does not pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dpo_diag.commands import diag
from dpo_diag.errors import DiagError
from dpo_diag.gate.judge import Gate, junit
from dpo_diag.gate.rules import load_rules
from dpo_diag.records import RunWriter
from tests.outputs.conftest import answer_rows, frame
from tests.outputs.test_compare import make_run, scored_frame


def metric_run(path: Path, before: float, after: float, n: int = 100, ce_rise: float = 0.0) -> Path:
    """Two steps of an accuracy over n questions, and of 50 pairs whose chosen CE rises by `ce_rise` each."""
    writer = RunWriter(path)
    for step, value in ((0, before), (10, after)):
        rows = [
            {"step": step, "split": "held_out", "name": "score/accuracy", "value": value, "weight": n},
            {"step": step, "split": "eval", "name": "learning_rate", "value": value, "weight": None},
        ]
        rng = np.random.default_rng(0)
        ce = rng.uniform(1, 2, 50) + ce_rise * (step > 0)
        pairs = [
            {"step": step, "split": "eval", "role": "policy", "pair_id": f"q{i}", "side": side, "sum_logp": -10 * c,
             "n_tokens": 10, "n_bytes": 40}
            for i, c in enumerate(ce)
            for side in ("chosen", "rejected")
        ]  # fmt: skip
        rows.append({"step": step, "split": "eval", "name": "ce/chosen", "value": float(ce.mean()), "weight": 50})
        writer.write("history", rows, split="all")
        writer.write("pairs", pairs, split="eval")
    writer.finish()
    return path


def status(path: Path, rule: dict[str, Any], baseline: str | None = None) -> tuple[str, str]:
    outcome = Gate(path, baseline).judge(rule)
    return outcome.status, outcome.reason


def test_a_change_inside_its_noise_is_no_failure(tmp_path: Path) -> None:
    """.70 -> .66 of 100: the interval of the change reaches above 0; .70 -> .40 does not."""
    rule = {"metric": "score/accuracy", "max_drop": 0.0}
    small = status(metric_run(tmp_path / "a", 0.70, 0.66), rule)
    assert small[0] == "passed" and "inside its noise" in small[1]
    large = status(metric_run(tmp_path / "b", 0.70, 0.40), rule)
    assert large[0] == "failed" and "change -0.3 [" in large[1]
    many = status(metric_run(tmp_path / "c", 0.70, 0.66, n=100_000), rule)
    assert many[0] == "failed"
    assert status(tmp_path / "b", {"metric": "score/accuracy", "min": 0.45})[0] == "passed"  # .40 of 100: up to .498
    assert status(tmp_path / "b", {"metric": "score/accuracy", "min": 0.55})[0] == "failed"


def test_pairs_give_a_paired_interval(tmp_path: Path) -> None:
    """Each of 50 pairs rose by 0.05: the paired change is exact, though the pairs' spread is far larger."""
    path = metric_run(tmp_path / "run", 0.7, 0.7, ce_rise=0.05)
    outcome = Gate(path).judge({"metric": "ce/chosen", "max_rise": 0.04})
    assert outcome.status == "failed"
    assert (outcome.low, outcome.high) == (pytest.approx(0.05), pytest.approx(0.05)) and outcome.n == 50
    assert status(path, {"metric": "ce/chosen", "max_rise": 0.06})[0] == "passed"


def test_without_an_interval_the_number_decides_and_says_so(tmp_path: Path) -> None:
    path = metric_run(tmp_path / "run", 0.7, 0.6)
    result = status(path, {"metric": "learning_rate", "max_drop": 0.05})
    assert result[0] == "failed" and "(no interval)" in result[1]


def test_what_is_absent_fails_unless_it_may_be_skipped(tmp_path: Path) -> None:
    path = metric_run(tmp_path / "run", 0.7, 0.7)
    assert status(path, {"metric": "score/none", "min": 0})[0] == "failed"
    assert status(path, {"metric": "score/none", "min": 0, "missing": "skip"})[0] == "skipped"
    assert "not measured at step 3" in status(path, {"metric": "score/accuracy", "max_drop": 0}, "3")[1]
    assert status(path, {"phrases": 0})[0] == "failed"  # no answers at all
    assert "no check DVG999" in status(path, {"finding": "DVG999"})[1]


def test_answers_tags_phrases_behaviours(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", scored_frame())
    assert status(path, {"tag": "paraphrased", "max_drop": 0.1})[0] == "failed"
    assert status(path, {"tag": "held_out", "max_drop": 0.1})[0] == "passed"
    gap = Gate(path).judge({"tag": "paraphrased", "of": "gap", "max_drop": 0.2})
    assert gap.status == "failed" and (gap.value, gap.baseline) == (-1.0, 0.0)
    assert status(path, {"behaviour": "right answers"})[0] == "failed"
    assert status(path, {"behaviour": "no loops"})[0] == "passed"
    assert "no prompt has the tag" in status(path, {"tag": "zz", "min": 0})[1]
    base = {f"p{i}": f"answer number {i} is this" for i in range(60)}
    after = {k: t + (". Please rest assured!" if i < 20 else "") for i, (k, t) in enumerate(base.items())}
    planted = make_run(tmp_path / "p", frame(answer_rows(base), answer_rows(after, step=5)))
    assert status(planted, {"phrases": 0})[0] == "failed" and status(planted, {"phrases": 1})[0] == "passed"
    assert status(planted, {"phrase": "rest assured", "max_rise": 0.05})[0] == "failed"
    assert status(planted, {"phrase": "rest assured", "max": 0.3})[0] == "passed"  # 20/60, noise reaches below
    assert status(planted, {"gaming": "length_bias"})[0] in ("passed", "failed")
    assert status(planted, {"gaming": "sycophancy", "missing": "skip"})[0] == "skipped"


def test_another_run_as_baseline(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", scored_frame()[lambda f: f["step"] == 0])
    bad = make_run(tmp_path / "bad", scored_frame())
    assert status(bad, {"tag": "paraphrased", "max_drop": 0.1}, str(good))[0] == "failed"
    assert status(good, {"tag": "paraphrased", "max_drop": 0.1}, str(good))[0] == "passed"
    a, b = metric_run(tmp_path / "a", 0.5, 0.9, n=1000), metric_run(tmp_path / "b", 0.9, 0.5, n=1000)
    assert status(b, {"metric": "score/accuracy", "max_drop": 0.1}, str(a))[0] == "failed"
    assert status(a, {"metric": "score/accuracy", "max_drop": 0.1}, str(b))[0] == "passed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "holds no rules"),
        ("- a", "holds no rules"),
        ("rules: [", "not YAML"),
        ("rules: [{metric: x}]", "rule 1; expected one of"),
        ("rules: [{metric: x, min: 1}, {metric: x, maxdrop: 1}]", "unknown key 'maxdrop'; in .*rule 2"),
        ("rules: [{metric: x, tag: y, min: 1}]", "one subject"),
        ("rules: [{metric: x, min: high}]", "min is not a number"),
        ("rules: [{phrases: 0, missing: maybe}]", "missing is fail or skip"),
        ("rules: [x]", "a rule is a mapping"),
    ],
)
def test_rules_are_checked_first(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    with pytest.raises(DiagError, match=said) as caught:
        load_rules(file)
    assert caught.value.usage


def test_command_exit_status_table_junit_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = metric_run(tmp_path / "run", 0.7, 0.4)
    rules = tmp_path / "gate.yaml"
    rules.write_text(
        'rules:\n - {metric: score/accuracy, max_drop: 0.1, name: "acc <\\e[0m>"}\n - {metric: ce/chosen, max: 9}\n'
    )
    xml = tmp_path / "out" / "junit.xml"
    assert diag.main(["gate", str(path), "--rules", str(rules), "--junit", str(xml)]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "1 passed, 1 failed, 0 skipped" in out and "\x1b" not in out
    suite = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite[0].get("name") == "acc <<U+001B>[0m>" and suite[0][0].tag == "failure"
    assert diag.main(["gate", str(path), "--rules", str(rules), "--baseline", "10", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True and [r["status"] for r in document["rules"]] == ["passed", "passed"]
    assert diag.main(["gate", str(path), "--rules", str(tmp_path / "absent")]) == 2
    assert junit([], "x").startswith(b"<?xml")
