"""A subject of rules from outside the package: one file, named by DPO_DIAG_PLUGINS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.errors import DiagError
from dpo_diag.gate.judge import Gate
from dpo_diag.gate.rules import describe, load_rules
from dpo_diag.gate.subject import SUBJECTS
from dpo_diag.registry import PLUGIN_VARIABLE
from dpo_diag.thresholds import load_thresholds
from tests.outputs.conftest import answer_rows, frame
from tests.outputs.test_compare import make_run

PLUGIN = """
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Quantity, Subject
from dpo_diag.stats import mean_interval

def judge(judged, rule):
    c = judged.comparison
    return Quantity(mean_interval(c.answers.values(c.measured, c.target, "n_words")))

SUBJECTS.add("words", Subject("mean", "words per answer", judge, limits=("min", "max")))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toy_words_rule.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(PLUGIN_VARIABLE, "toy_words_rule")
    yield
    SUBJECTS._entries.pop("words", None)
    sys.modules.pop("toy_words_rule", None)


@pytest.mark.usefixtures("plugin")
def test_a_plugins_subject_is_checked_judged_and_described(tmp_path: Path) -> None:
    """Answers of 2, 3 and 4 words: mean 3, sd 1, t(2) = 4.303, half-width 2.484: 5.6 lies beyond, 5.4 inside."""
    texts = {"a": "one two", "b": "one two three", "c": "one two three four"}
    run = make_run(tmp_path / "run", frame(answer_rows(texts), answer_rows(texts, step=5)))
    file = tmp_path / "gate.yaml"
    file.write_text("rules: [{words: mean, min: 5.6}, {words: mean, min: 5.4}]")
    failed, passed = Gate(run).judge_all(load_rules(file))
    assert (failed.status, passed.status, failed.value, failed.n) == ("failed", "passed", 3.0, 3)
    assert (failed.low, failed.high) == (pytest.approx(3 - 2.484, abs=1e-3), pytest.approx(3 + 2.484, abs=1e-3))
    assert failed.name == "words mean: min 5.6"
    assert "words: mean  words per answer; min, max" in describe()
    file.write_text("rules: [{words: mean, max_drop: 1}]")
    with pytest.raises(DiagError, match="unknown key 'max_drop'"):
        load_rules(file)


def test_every_subject_says_what_it_is_about() -> None:
    assert set(SUBJECTS) == {"metric", "tag", "phrase", "phrases", "finding", "gaming", "behaviour", "review"}
    assert "tag: NAME  mean score of the prompts with that tag" in describe()


def test_thresholds_reach_the_answers(tmp_path: Path) -> None:
    """Every answer grew from 8 to 9 words: a ratio of 1.125, above the default 1.1 and below 1.2."""
    assert load_thresholds()["gaming.least_length_ratio"] == 1.1
    before = {f"p{i}": "a b c d e f g h" for i in range(12)}
    longer = {k: f"{t} i" for k, t in before.items()}
    run = make_run(tmp_path / "run", frame(answer_rows(before), answer_rows(longer, step=5)))
    rule = {"gaming": "length_bias"}
    assert Gate(run).judge(rule).status == "failed"
    assert Gate(run, thresholds={"gaming.least_length_ratio": 1.2}).judge(rule).status == "passed"


def test_the_subjects_are_listed_and_a_call_without_rules_says_what_is_needed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["gate", "--subjects"]) == 0
    assert "finding: CODE" in capsys.readouterr().out
    assert main(["gate", "RUN"]) == 2
    assert "expected dpo-diag gate RUN --rules FILE" in capsys.readouterr().err
