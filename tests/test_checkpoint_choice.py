"""Which checkpoint is kept: the earliest within the noise of the best on disk; what counts as an improvement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.checkpoint_choice import Curve, choose, curve_of, without_gain
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.keep import keep, metric_words
from dpo_diag.errors import DiagError

EXAMPLE = Path(__file__).resolve().parents[1] / "runs" / "example"


def curve(*columns: list[float], better: str = "higher") -> Curve:
    """Evaluations at steps 10, 20, ...; one column of units each."""
    units = np.asarray(columns, dtype=float).T
    steps = tuple(10 * (i + 1) for i in range(units.shape[1]))
    return Curve("m", "eval", better, steps, units.mean(axis=0), units, np.full(len(steps), float(len(units))))  # type: ignore[arg-type]


def ones(n: int, of: int = 100) -> list[float]:
    return [1.0] * n + [0.0] * (of - n)


def test_the_earliest_within_one_standard_error_of_the_best_on_disk() -> None:
    """Right answers of 100: 50, 60, 70, 72, 90, and those right before stay right. From 60 to 72 twelve changed, all to
    the better: mean 0.12, variance of the differences (12 - 144 / 100) / 99 = 0.1067, standard error 0.0327: outside.
    From 70 to 72 two changed (fewer than ten: Agresti and Min's): b, c = 0.5, 2.5, m = 102, its error
    sqrt(3 - 4 / 102) / 102 = 0.01687, and 0.02 is more than one of them, less than two. 90 is not on disk."""
    of = curve(ones(50), ones(60), ones(70), ones(72), ones(90))
    kept, found = choose(of, {10, 20, 30, 40}, band=1.0)
    assert kept == 40
    assert [(c.step, round(c.behind, 4), c.within) for c in found] == [
        (10, 0.22, False), (20, 0.12, False), (30, 0.02, False), (40, 0.0, True),
    ]  # fmt: skip
    assert found[1].error == pytest.approx(0.0327 * 1.0124, rel=0.01)  # t(99) over the normal quantile
    assert found[2].error == pytest.approx(0.01687, rel=1e-3)
    assert choose(of, {10, 20, 30, 40}, band=2.0)[0] == 30
    assert choose(of, {10, 20, 30, 40, 50}, band=2.0)[0] == 50
    assert choose(of, set(), band=1.0) == (None, [])


def test_what_is_paired_is_told_apart_by_less() -> None:
    """Means 0.5 and 0.52 over units that scatter by hundreds, each 0.02 above its own: the difference has no error, so
    that the second is kept; as a cost, the first."""
    scattered = [float(v) for v in range(-500, 500)]
    better = [v + 0.02 for v in scattered]
    assert choose(curve(scattered, better), {10, 20}, band=1.0)[0] == 20
    assert choose(curve(scattered, better, better="lower"), {10, 20}, band=1.0)[0] == 10


def test_without_units_shares_are_two_samples_and_other_numbers_have_no_band() -> None:
    """0.70 and 0.72 of 100: Newcombe's error is about 0.064, so the earlier one is kept; of a mean of unknown noise the
    bare best."""
    shares = Curve("score/x", "eval", "higher", (10, 20), np.array([0.70, 0.72]), None, np.array([100.0, 100.0]))
    assert choose(shares, {10, 20}, band=1.0)[0] == 10
    bare = Curve("margin", "eval", "higher", (10, 20), np.array([7.0, 7.1]), None, np.array([np.nan, np.nan]))
    assert choose(bare, {10, 20}, band=1.0)[0] == 20


def test_patience_counts_evaluations_without_a_gain_beyond_the_noise() -> None:
    """60 of 100, then 61 (one changed: within), 60, 75 (a gain), 75, 74: the last gain is the fourth evaluation."""
    of = curve(ones(60), ones(61), ones(60), ones(75), ones(75), ones(74))
    assert without_gain(of, band=1.0) == (40, 2)
    assert without_gain(curve(ones(60)), band=1.0) == (10, 0)
    assert without_gain(curve(ones(60), ones(50), ones(55)), band=1.0) == (10, 2)


def test_small_gains_add_up() -> None:
    """Each evaluation gains one answer, which alone is within the noise; against the last gain they add up."""
    of = curve(*(ones(60 + i) for i in range(8)))
    step, since = without_gain(of, band=1.0)
    assert step > 10 and since < 3


def test_the_score_of_the_example_is_that_of_its_history() -> None:
    """All checked answers, and of one split; reward accuracy pair by pair: their means are the logged ones."""
    run = load_run(EXAMPLE)
    history = run.history.astype({"name": str, "split": str})

    def logged(name: str, split: str) -> list[float]:
        rows = history[(history["name"] == name) & (history["split"] == split)].sort_values("step")
        return rows["value"].tolist()

    score = curve_of(run)
    assert (score.name, score.better) == ("score", "higher") and score.units is not None
    accuracy = curve_of(run, "rewards/accuracies")
    assert accuracy.units is not None and accuracy.n == len(accuracy.units)
    assert accuracy.values == pytest.approx(logged("rewards/accuracies", accuracy.split), abs=1e-6)  # float32
    ce = curve_of(run, f"ce/chosen@{accuracy.split}")
    assert (ce.better, ce.values.tolist()) == ("lower", pytest.approx(logged("ce/chosen", ce.split), rel=1e-6))
    with pytest.raises(DiagError, match=r"does not record this.*rewards/accuracy"):
        curve_of(run, "rewards/accuracy")
    with pytest.raises(DiagError, match="neither way is better"):
        curve_of(run, "rewards/chosen")


def test_means_of_a_run_without_pairs_are_a_curve(tmp_path: Path) -> None:
    """As a supervised training logs them: there is no pair to compare, and nothing that is no number."""
    writer = RunWriter(tmp_path / "run")
    rows = [{"step": step, "split": "eval", "name": "ce/response", "value": 2.0 - step / 10} for step in (0, 5, 9)]
    writer.write("history", rows)
    writer.finish()
    found = curve_of(load_run(tmp_path / "run"), "ce/response")
    assert found.steps == (0, 5, 9) and found.values.tolist() == pytest.approx([2.0, 1.5, 1.1])
    assert found.units is None and not found.broken
    document = {"metric": "ce/response", "split": "eval", "n": 21, "better": "lower"}
    assert metric_words(document).endswith("(ce/response) of 21 answers of eval, lower is better")
    assert " of 21 pairs of eval" in metric_words({**document, "metric": "ce/chosen"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The example with checkpoints of steps 20, 40 and 80, one that was measured by nobody, and one that is cut."""
    run = tmp_path / "run"
    shutil.copytree(EXAMPLE, run)
    for step in (20, 40, 80, 83):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * 998)
    (run / "checkpoints" / "checkpoint-30").mkdir()
    return run


def test_keep_says_which_stays_and_why_and_deletes_nothing(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(saved.rglob("*"))
    assert main(["keep", str(saved), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    verdicts = {c["step"]: (c["verdict"], c["why"]) for c in document["checkpoints"]}
    assert (document["keep"], document["best_measured"]) == (20, 0)
    assert verdicts[20] == ("keep", "the choice")
    assert verdicts[30] == ("may be deleted", "it was not written to its end")
    assert verdicts[40] == verdicts[80] == ("may be deleted", "worse than the best one, beyond the noise")
    assert verdicts[83] == ("stays", "it was not measured")
    assert document["bytes_freed"] == 2000 and document["next"] == [f"dpo-diag explain {saved} --to 20"]
    assert main(["keep", str(saved)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("keep checkpoint-20: the best, and no earlier one is within 1 standard error of it\n")
    assert "the model before training was better by 0.03667, beyond the noise, and is not among them\n" in out
    assert "may be deleted: checkpoint-30, checkpoint-40, checkpoint-80, 2 kB (nothing was deleted)" in out
    assert sorted(saved.rglob("*")) == files


def test_a_checkpoint_whose_log_probs_are_nan_is_none_to_keep(saved: Path) -> None:
    """Step 40's rows are NaN, and what was logged of them is a reward accuracy of 1: 20 is kept, 40 may go; with those
    of 20 and 80 NaN, too, there is nothing to keep, and it is said why."""

    def spoil(*steps: int) -> dict[str, tuple[str, str]]:
        for file in (saved / "pairs").glob("*.parquet"):
            table = pq.read_table(file)
            frame = table.to_pandas()
            spoilt = frame["step"].isin(steps) & (frame["role"].astype(str) == "policy")
            frame.loc[spoilt, "sum_logp"] = np.nan
            pq.write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), file)
        document = keep(load_run(saved), "rewards/accuracies")
        found[:] = [document["keep"], document["reason"]]
        return {c["step"]: (c["verdict"], c["why"]) for c in document["checkpoints"]}

    found: list[object] = []
    verdicts = spoil(40)
    assert found[0] in (20, 80) and verdicts[40] == ("may be deleted", "its log-probs are no numbers")
    verdicts = spoil(20, 40, 80)
    assert found == [None, "of those that were measured none has log-probs that are numbers"]
    assert verdicts[83] == ("stays", "it was not measured")


def test_what_a_resume_needs_stays(saved: Path) -> None:
    """The same run, not finished: its last checkpoint stays, measured or not."""
    from dpo_diag.records.checksums import read_json
    from dpo_diag.records.files import write_json

    write_json(saved / "run.json", read_json(saved / "run.json") | {"status": "interrupted"})
    verdicts = {c["step"]: c["why"] for c in keep(load_run(saved))["checkpoints"]}
    assert verdicts[83] == "the run is not finished, and goes on from it"


def test_the_report_shows_the_choice_where_there_are_checkpoints(saved: Path) -> None:
    from dpo_diag.report.section import Context, NothingToSay
    from dpo_diag.report.sections.keep import build

    shown = build(Context(load_run(saved), None, {}))  # type: ignore[arg-type]
    assert shown["lines"][0].startswith("keep checkpoint-20: the best")
    assert len(shown["checkpoints"].rows) == 5
    with pytest.raises(NothingToSay):
        build(Context(load_run(EXAMPLE), None, {}))  # type: ignore[arg-type]
