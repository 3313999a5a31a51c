"""Every setting of a sweep against one of them, paired over the questions with the seeds averaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpo_diag import RunWriter
from dpo_diag.commands.sweep import sweep as command
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.diagnosis.sweep_against import against
from dpo_diag.errors import DiagError
from dpo_diag.paired import paired_change
from tests.diagnosis.sweep_runs import scored_run

N = 40
RIGHT = {
    ("plain", 0): 20, ("plain", 1): 24, ("better", 0): 30, ("better", 1): 32, ("same", 0): 20, ("same", 1): 24,
    ("better", 2): 40,
}  # fmt: skip
"""(remedy, seed) -> the first so many of 40 questions are right."""


def run(folder: Path, right: int, answered: bool, *overrides: str) -> None:
    writer = RunWriter(folder)
    writer.write("history", [
        {"step": 9, "split": split, "name": name, "value": value, "weight": weight}
        for split, name, value, weight in (
            ("held_out", "score/acc", right / N, N), ("eval", "ce/chosen", 1 + right / 100, 5), ("eval", "loss", 0.5, 5)
        )
    ])  # fmt: skip
    if answered:
        writer.write("outputs", [
            {"step": 9, "prompt_id": f"q{i:02}", "sample": 0, "model": "policy", "text": "t", "seed": 0,
             "prompt": "p", "n_tokens": 1, "finish_reason": "stop", "correct": float(i < right), "decoding_hash": "h",
             "tags": ["held_out"]}
            for i in range(N)
        ])  # fmt: skip
    writer.update(data={"fingerprint": "one"}, splits={"eval": {"role": "held_out"}})
    writer.finish()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {t}\n" for t in overrides))


def runs(folder: Path, answered: bool = True) -> Path:
    """A glob over the runs of RIGHT."""
    for (remedy, seed), right in RIGHT.items():
        run(folder / f"{remedy}{seed}", right, answered, f"remedy={remedy}", f"seed={seed}")
    return folder / "*"


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs(tmp_path_factory.mktemp("answered"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without the answers."""
    return runs(tmp_path_factory.mktemp("scored"), answered=False)


def test_a_difference_is_paired_over_questions_and_told_by_seed(answered: Path) -> None:
    """Seeds 0 and 1 ran in both: means 31/40 and 22/40, so 9/40 = 0.225. Seed-averaged answers of a question are 1, 1/2
    or 0: plain has 20 ones and 4 halves, better 30 ones and 2 halves: differences 0 (20 of them), 1/2 (4), 1 (6), 1/2
    (2), 0 (8): mean 9/40, variance (6 + 6/4 - 40 * .225^2) / 39 = .140385, error .059242, t(39) 2.0227: +- .119829.
    Seed by seed 10/40 and 8/40. Seed 2 has no partner."""
    bases, others = against(sweep(answered), "remedy=plain")
    assert [(s.given, s.seeds) for s in bases] == [({"remedy": "plain"}, ("0", "1"))]
    better, same = sorted(others, key=lambda s: s.given["remedy"])
    assert better.seeds == ("0", "1")
    (found,) = better.scores
    assert (found.score, found.value, found.base) == ("acc[held_out]", pytest.approx(31 / N), pytest.approx(22 / N))
    assert found.change.value == pytest.approx(0.225)
    assert found.change.bounds == pytest.approx([0.225 - 0.119829, 0.225 + 0.119829], abs=1e-5)
    assert found.by_seed == pytest.approx((0.25, 0.2))
    assert better.values["ce/chosen"] == pytest.approx(1.31)  # of the two seeds alone
    assert np.isnan(better.values["ppl_token/chosen"])
    # Two p-values, the other 1: Benjamini-Hochberg doubles the smaller one.
    p = paired_change([1] * 20 + [0.5] * 4 + [0] * 16, [1] * 30 + [0.5] * 2 + [0] * 8).p
    assert (found.p, found.q) == (pytest.approx(p), pytest.approx(2 * p))
    assert (same.scores[0].change.value, same.scores[0].q) == (0.0, 1.0)


def test_each_setting_against_its_own_start(tmp_path: Path) -> None:
    """30 of 100 right at first; 40 and 50 in the two seeds at the end: +0.15, seed by seed +0.1 and +0.2."""
    for seed in (0, 1):
        scored_run(tmp_path / str(seed), (0.3, 0.4 + 0.1 * seed), 1.0, "beta=1", f"seed={seed}")
    bases, (setting,) = against(sweep(tmp_path / "*"), "start")
    assert bases == []
    (found,) = setting.scores
    assert (found.value, found.base, found.change.value) == pytest.approx((0.45, 0.3, 0.15))
    assert found.by_seed == pytest.approx((0.1, 0.2))


def test_without_answers_a_difference_has_no_interval(scored: Path) -> None:
    _, others = against(sweep(scored), "remedy=plain")
    found = next(s for s in others if s.given["remedy"] == "better").scores[0]
    assert (found.change.value, found.change.bounds) == (pytest.approx(0.225), None)
    assert np.isnan(found.q)


def test_a_setting_that_nobody_ran_ends_in_one_line(scored: Path) -> None:
    collected = sweep(scored)
    for base, said in (
        ("remedi=plain", "one of remedy"),
        ("remedy=best", "one of better, plain, same"),
        ("seed=0", "one"),
    ):
        with pytest.raises(DiagError) as error:
            against(collected, base)
        assert said in str(error.value)


def test_the_command_prints_and_hands_over_the_same(answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = str(answered)
    assert command([pattern], against="remedy=plain", no_verdicts=True) == 0
    printed = capsys.readouterr().out
    assert "against remedy=plain, means over the seeds that both ran" in printed
    assert "+0.225" in printed and "[+0.105, +0.345]" in printed and "[+0.200, +0.250]" in printed
    assert command([pattern], against="remedy=plain", no_verdicts=True, json=True) == 0
    document = json.loads(capsys.readouterr().out)["against"]
    assert [s["overrides"] for s in document["base"]] == [{"remedy": "plain"}]
    better = next(s for s in document["others"] if s["overrides"]["remedy"] == "better")
    assert better["scores"][0]["interval"] == pytest.approx([0.105171, 0.344829], abs=1e-5)
    assert better["values"]["ppl_token/chosen"] is None
