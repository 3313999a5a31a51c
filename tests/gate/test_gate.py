"""The gate: a change inside its noise is no failure, what cannot be seen does not pass."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dpo_diag.commands import diag
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.errors import DiagError
from dpo_diag.gate.judge import Gate, junit
from dpo_diag.gate.rules import load_rules
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Quantity, Subject
from dpo_diag.losses import LossSpec
from dpo_diag.records import RunWriter
from dpo_diag.stats import Interval
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


def test_the_baseline_is_the_reference_where_it_was_measured(tmp_path: Path) -> None:
    """Reference: 10 answers of 10 tokens and -10 nats, cross-entropy 1; checkpoints 40 and 80: 1.05 and 1.2. The rise
    since the reference is 0.2, since step 40 it is 0.15."""
    writer = RunWriter(tmp_path / "r", kind="scored")
    for role, step, ce in (("ref", 0, 1.0), ("policy", 40, 1.05), ("policy", 80, 1.2)):
        pairs = [{"step": step, "split": "eval", "role": role, "pair_id": f"q{i}", "side": side, "sum_logp": -10 * ce,
                  "n_tokens": 10, "n_bytes": 40} for i in range(10) for side in ("chosen", "rejected")]  # fmt: skip
        writer.write("pairs", pairs, split=f"eval-{role}")
        if role == "policy":
            writer.write("history", [{"step": step, "split": "eval", "name": "ce/chosen", "value": ce, "weight": 10}])
    writer.finish()
    rule = {"metric": "ce/chosen", "max_rise": 0.18}
    for baseline, rise in ((None, 0.2), ("ref", 0.2), ("40", 0.15)):
        outcome = Gate(tmp_path / "r", baseline).judge(rule)
        assert (outcome.status, outcome.baseline) == ("failed" if rise > 0.18 else "passed", pytest.approx(1.2 - rise))


def scored_run(path: Path, n: int = 20) -> Path:
    """A scored run with its reference and loss (sigmoid, beta 0.5), and an empty history. Pair i: 10 tokens a side,
    reference -10 - i / 10; at step 80 chosen is 1 + (i % 3) nats likelier and rejected 2 less likely: margin
    0.5 (3 + i % 3)."""
    writer = RunWriter(path, kind="scored")
    writer.update(loss=LossSpec(beta=0.5))
    for role, step, up, down in (("ref", 0, 0, 0), ("policy", 80, 1, -2)):
        rows = [
            {"step": step, "split": "eval", "role": role, "pair_id": f"q{i:02}", "side": side, "n_tokens": 10,
             "sum_logp": -10 - i / 10 + move + (i % 3 if up and side == "chosen" else 0), "n_bytes": 40}
            for i in range(n) for side, move in (("chosen", up), ("rejected", down))
        ]  # fmt: skip
        writer.write("pairs", rows, split=f"eval-{role}")
    writer.finish()
    return path


def test_of_a_scored_run_gate_sweep_and_explain_give_one_number(tmp_path: Path) -> None:
    """The mean margin over i = 0..19 (7, 7 and 6 pairs of 1.5, 2 and 2.5) is 39.5 / 20 = 1.975; at the reference it is
    0 and the loss ln 2. Value, start and interval are those of the explanation, with nothing in history."""
    run = scored_run(tmp_path / "run")
    told, gate, row = explain(run), Gate(run), sweep(run).runs.iloc[0]
    loss = gate.judge({"metric": "loss", "max_rise": 0.0})
    assert loss.status == "passed"
    assert (loss.baseline, loss.value) == pytest.approx((math.log(2), told["loss"]["to"]), rel=1e-12)
    assert [loss.low, loss.high] == pytest.approx(told["loss"]["interval"], rel=1e-12)
    margin, margins = gate.judge({"metric": "rewards/margins", "max_drop": 0.0}), told["margins"]
    assert (margin.baseline, margin.value) == pytest.approx((0.0, 1.975), abs=1e-12)
    assert margins["to"] * 0.5 == pytest.approx(1.975)
    assert [margin.low, margin.high] == pytest.approx([0.5 * bound for bound in margins["interval"]], rel=1e-12)
    perplexity = gate.judge({"metric": "ppl_seq_mean/chosen", "max_rise": 0.0})
    of_explain = told["perplexity"]["chosen"]["ppl_seq_mean"]
    assert (perplexity.baseline, perplexity.value) == pytest.approx((of_explain["from"], of_explain["to"]), rel=1e-12)
    accuracy = gate.judge({"metric": "rewards/accuracies", "min": 0.5})
    assert (accuracy.status, accuracy.value) == ("passed", told["margins"]["accuracy_to"])
    assert [row["loss"], row["chosen_ppl_seq_mean"], row["reward_accuracy"], row["step"]] == pytest.approx(
        [told["loss"]["to"], of_explain["to"], 1.0, 80], rel=1e-12
    )
    assert gate.judge({"metric": "entropy/chosen", "max": 1}).status == "failed"  # no formula's columns: still absent


def test_a_change_inside_its_noise_is_no_failure(tmp_path: Path) -> None:
    """.70 -> .66 of 100: the interval of the change reaches above 0; .70 -> .40 does not."""
    rule = {"metric": "score/accuracy", "max_drop": 0.0}
    small = status(metric_run(tmp_path / "a", 0.70, 0.66), rule)
    assert small[0] == "passed" and "inside its noise" in small[1]
    large = status(metric_run(tmp_path / "b", 0.70, 0.40), rule)
    assert large[0] == "failed" and "change -0.300 (95 % interval -0.4" in large[1]
    many = status(metric_run(tmp_path / "c", 0.70, 0.66, n=100_000), rule)
    assert many[0] == "failed"
    assert status(tmp_path / "b", {"metric": "score/accuracy", "min": 0.45})[0] == "passed"  # .40 of 100: up to .498
    assert status(tmp_path / "b", {"metric": "score/accuracy", "min": 0.55})[0] == "failed"


MEASURED = Interval(-0.113, -0.185, -0.039, 150)
"""A fall from .713 to .600 of 150 questions."""


@pytest.mark.parametrize(
    ("rule", "decide", "status", "said"),
    [
        (
            {"max_drop": 0.05},
            None,
            "failed",
            "beyond max_drop 0.05, and its interval excludes no change (decide: s",
        ),
        ({"max_drop": 0.05}, "interval", "passed", "beyond max_drop 0.05, but its interval reaches within the limit"),
        ({"max_drop": 0.02}, "interval", "failed", "beyond max_drop 0.02, its whole interval too (decide: interval)"),
        ({"max_drop": 0.05}, "point", "failed", "change -0.113 (95 % interval -0.185 to -0.0390) is beyond"),
        ({"max_drop": 0.15}, "point", "passed", "is within max_drop 0.15"),
        ({"max_drop": 0.15}, None, "passed", "is within max_drop 0.15"),
    ],
)
def test_how_a_limit_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rule: dict[str, Any], decide: str | None, status: str, said: str
) -> None:
    """-0.113 [-0.185, -0.039] against a fall of 0.05: the estimate is beyond it and 0 is excluded, but the interval
    reaches -0.039; against 0.02 all of it is beyond; against 0.15 nothing is."""
    subject = Subject("X", "a fall", lambda judged, rule: Quantity(Interval(0.6, 0.52, 0.68, 150), 0.713, MEASURED),
                      limits=LIMITS)  # fmt: skip
    monkeypatch.setitem(SUBJECTS._entries, "fall", subject)
    gate = Gate(metric_run(tmp_path / "run", 0.7, 0.6))
    outcome = gate.judge({"fall": "x", **rule, **({"decide": decide} if decide else {})})
    assert outcome.status == status and said in outcome.reason
    document = outcome.document()
    assert (document["estimate"], document["interval"]) == (-0.113, [-0.185, -0.039])
    assert (document["decide"], document["verdict"]) == (decide or "significant", status)


@pytest.mark.parametrize(("decide", "statuses"), [("significant", "pf"), ("interval", "pf"), ("point", "ff")])
def test_a_limit_on_the_value(tmp_path: Path, decide: str, statuses: str) -> None:
    """.40 of 100, Wilson up to .498: it reaches a least of .45, not one of .55; the point lies below both."""
    path = metric_run(tmp_path / "run", 0.7, 0.4)
    for least, expected in zip((0.45, 0.55), statuses, strict=True):
        rule = {"metric": "score/accuracy", "min": least, "decide": decide}
        assert status(path, rule)[0][0] == expected


def test_of_several_limits_the_failed_one_is_shown(tmp_path: Path) -> None:
    outcome = Gate(metric_run(tmp_path / "run", 0.7, 0.4)).judge(
        {"metric": "score/accuracy", "min": 0.1, "max_drop": 0.1, "decide": "point"}
    )
    assert [limit.verdict for limit in outcome.limits] == ["passed", "failed"]
    assert outcome.document()["estimate"] == pytest.approx(-0.3) and outcome.document()["value"] == 0.4


def test_a_metric_of_several_splits_is_refused_even_where_it_may_be_missing(tmp_path: Path) -> None:
    """A rule that fits two sets is no rule about a missing one: skip must not hide it."""
    writer = RunWriter(tmp_path / "run")
    writer.write("history", [{"step": step, "split": split, "name": "loss", "value": 0.5, "weight": 9}
                             for step in (0, 5) for split in ("eval", "eval_b")])  # fmt: skip
    rule = {"metric": "loss", "max_rise": 0.1, "missing": "skip"}
    refused = status(tmp_path / "run", rule)
    assert refused[0] == "failed"
    assert refused[1] == "refused: metric loss is recorded for splits eval, eval_b: name one (split: ...)"
    assert status(tmp_path / "run", rule | {"split": "eval_b"})[0] == "passed"


def test_a_file_says_how_its_rules_decide(tmp_path: Path) -> None:
    """The file's `decide` is that of every rule with a limit that names none; a statement has no interval."""
    file = tmp_path / "gate.yaml"
    file.write_text(
        "decide: point\nrules: [{metric: a, min: 1}, {metric: a, min: 1, decide: interval}, {finding: DVG001}]"
    )
    assert [rule.get("decide") for rule in load_rules(file)] == ["point", "interval", None]


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
        ("- a", "holds no object"),
        ("rules: [", "not YAML"),
        ("rules: [{metric: x}]", "rule 1; expected one of"),
        ("rules: [{metric: x, min: 1}, {metric: x, maxdrop: 1}]", "unknown key 'maxdrop'; in .*rule 2"),
        ("rules: [{metric: x, tag: y, min: 1}]", "one subject"),
        ("rules: [{metric: x, min: high}]", "min is not a number"),
        ("rules: [{phrases: 0, missing: maybe}]", "missing is fail or skip"),
        ("rules: [x]", "a rule is a mapping"),
        ("rules: [{metric: x, min: 1, decide: mean}]", "decide is significant or interval or point"),
        ("{decide: mean, rules: [{metric: x, min: 1}]}", "decide is significant or interval or point"),
        ("{deside: point, rules: [{metric: x, min: 1}]}", "unknown key 'deside'"),
        ("rules: [{finding: DVG001, decide: point}]", "unknown key 'decide'"),
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
    # Not a terminal: a reason is one whole line, whatever its length.
    reason = Gate(path, None).judge_all(load_rules(rules))[0].reason
    assert len(reason) > 60 and f"         {reason}\n" in out
    suite = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite[0].get("name") == "acc <<U+001B>[0m>" and suite[0][0].tag == "failure"
    assert diag.main(["gate", str(path), "--rules", str(rules), "--baseline", "10", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True and [r["status"] for r in document["rules"]] == ["passed", "passed"]
    assert diag.main(["gate", str(path), "--rules", str(tmp_path / "absent")]) == 2
    assert junit([], "x").startswith(b"<?xml")


def test_a_metric_of_training_batches_is_a_mean_of_rows(tmp_path: Path) -> None:
    """16 rows, .7 in the first four and .3 in the last four but one, .9: means .7 and (3 x .3 + .9) / 4 = .45; the last
    row alone would have risen."""
    writer = RunWriter(tmp_path / "r", kind="imported")
    values = [0.7] * 4 + [0.5] * 8 + [0.3, 0.3, 0.3, 0.9]
    rows = [{"step": i + 1, "split": "train", "name": "loss", "value": v} for i, v in enumerate(values)]
    writer.write("history", rows)
    writer.finish()
    outcome = Gate(tmp_path / "r", None).judge({"metric": "loss", "max_rise": 0.1})
    assert (outcome.status, outcome.value, outcome.baseline) == ("passed", pytest.approx(0.45), pytest.approx(0.7))


def test_a_metric_of_training_batches_starts_where_the_run_started(tmp_path: Path) -> None:
    """Rows every ten steps, loss .67 to .37 by .02, chosen -.1 to -1.6 by -.1: the reference stands at ln 2 and 0, the
    last four rows at .40 and -1.45; from the first four rows the fall would be 1.2 alone."""
    writer = RunWriter(tmp_path / "r", kind="imported")
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1}, beta=0.1)
    series = {"loss": lambda i: 0.67 - 0.02 * i, "rewards/chosen": lambda i: -0.1 * (i + 1)}
    rows = [{"step": 10 * (i + 1), "split": "train", "name": name, "value": f(i)}
            for i in range(16) for name, f in series.items()]  # fmt: skip
    writer.write("history", rows)
    writer.finish()
    outcome = Gate(tmp_path / "r", None).judge({"metric": "rewards/chosen", "max_drop": 1.3})
    assert (outcome.status, outcome.value, outcome.baseline) == ("failed", pytest.approx(-1.45), pytest.approx(0.0))
    loss = Gate(tmp_path / "r", None).judge({"metric": "loss", "max_rise": 0.0})
    assert (loss.value, loss.baseline) == (pytest.approx(0.40), pytest.approx(math.log(2)))
