"""The sweep's tables, and the command that prints them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import RunWriter
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.errors import DiagError
from dpo_diag.records.run_info import Kind


def finished(folder: Path, loss: float, right: int, *overrides: str, status: str = "finished") -> None:
    writer = RunWriter(folder)
    writer.write(
        "history",
        [
            {"step": 0, "split": "eval", "name": "loss", "value": 0.693, "weight": 8},
            {"step": 9, "split": "eval", "name": "loss", "value": loss, "weight": 8},
            {"step": 9, "split": "eval", "name": "ppl_seq_mean/chosen", "value": 2 * loss, "weight": 8},
            {"step": 9, "split": "held_out", "name": "score/acc", "value": right / 100, "weight": 100},
        ],
        "eval",
    )
    writer.finish(status)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {t}\n" for t in overrides))


@pytest.fixture
def four_runs(tmp_path: Path) -> Path:
    """Two settings of beta with two seeds each, one interrupted, one that never began, one foreign folder."""
    settings = [("0.1", 0, 0.6, 40), ("0.1", 1, 0.5, 60), ("2", 0, 0.3, 50), ("2", 1, 0.2, 52)]
    for i, (beta, seed, loss, right) in enumerate(settings):
        finished(tmp_path / str(i), loss, right, "experiment=sql", f"loss.beta={beta}", f"seed={seed}")
    finished(tmp_path / "4", 0.1, 1, "experiment=sql", "loss.beta=9", status="interrupted")
    (tmp_path / "5" / ".hydra").mkdir(parents=True)
    (tmp_path / "6").mkdir()
    return tmp_path


def test_runs_groups_and_failures(four_runs: Path) -> None:
    """Mean and range over the seeds: beta 0.1 has losses 0.6 and 0.5, 40 and 60 of 100 right."""
    collected = sweep(f"{four_runs}/*")
    assert collected.constant == {"experiment": "sql"}
    assert collected.runs[["loss.beta", "seed", "loss", "chosen_ppl_seq_mean"]].to_numpy().tolist()[:2] == [
        ["0.1", "0", 0.6, 1.2], ["0.1", "1", 0.5, 1.0],
    ]  # fmt: skip
    row = collected.runs.iloc[0]
    assert [row[f"acc[held_out]{c}"] for c in ("", "_n")] == [0.4, 100]
    assert [row["acc[held_out]_low"], row["acc[held_out]_high"]] == pytest.approx([0.3094, 0.4980], abs=1e-4)
    groups = collected.groups.set_index("loss.beta")
    assert groups.loc["0.1", ["runs", "loss", "loss_low", "loss_high"]].tolist() == pytest.approx([2, 0.55, 0.5, 0.6])
    assert groups.loc["2", ["acc[held_out]", "acc[held_out]_low", "acc[held_out]_n"]].tolist() == pytest.approx(
        [0.51, 0.5, 200]
    )
    assert [(job.name, job.status, job.reason) for job in collected.unfinished] == [
        ("4", "interrupted", "stopped at step 9"), ("5", "failed", "no run.json: it ended before the first record"),
    ]  # fmt: skip


def test_the_command_prints_one_json_document(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", f"{four_runs}/*", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (len(document["runs"]), len(document["groups"]), len(document["failed"])) == (6, 2, 2)
    assert [run["status"] for run in document["runs"]] == ["completed"] * 4 + ["interrupted", "failed"]
    assert document["runs"][4]["overrides"] == {"experiment": "sql", "loss.beta": 9}
    assert document["runs"][0]["verdict"]["label"] == "cannot_tell" and document["runs"][5]["verdict"] is None
    assert document["before"] == {"loss": 0.693} and document["ranked_by"] == ["acc[held_out]"]
    assert [run.get("rank") for run in document["runs"]] == [4, 1, 3, 2, None, None]
    assert document["runs"][0]["rejected_ppl_seq_mean"] is None


def test_the_table_for_people_and_for_spreadsheets(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = four_runs / "out" / "t.csv"
    assert main(["sweep", f"{four_runs}/*", "--csv", str(file)]) == 0
    out = capsys.readouterr().out
    assert "the same in all: experiment=sql" in out
    assert max(map(len, out.splitlines()[:-2])) <= 80  # but for the commands that follow
    assert "   4  0       0.400  [0.309, 0.498]  –       –     0.400 @9" in out
    assert "0.500 [0.400, 0.600] n=200" in out
    assert "6 jobs: 4 completed, 1 interrupted, 1 failed" in out
    assert "1 is best; not paired (95 % interval, not corrected for how many runs)" in out
    assert len(list(csv.DictReader(file.read_text().splitlines()))) == 4


def test_numbers_are_numbers_in_json_and_what_is_not_overridden_is_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "0", 0.5, 1, "lr=1e-5", "seed=3", "bf16=true", "name=007x", "same=5")
    finished(tmp_path / "1", 0.5, 1, "beta=0.1", "name=b", "same=5")
    assert main(["sweep", f"{tmp_path}/*", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["runs"]
    assert (first["lr"], first["seed"], first["bf16"], first["name"], first["beta"]) == (1e-5, 3, True, "007x", None)
    assert (second["beta"], second["lr"]) == (0.1, None) and document["constant"] == {"same": 5}


def run_of(folder: Path, kind: Kind, step: int = 9, ids: str = "ab", loss: float | None = 0.5, **facts: Any) -> None:
    """A run without Hydra's folder: pairs of step `step`, each side of 10 tokens, sums -10 and -20."""
    writer = RunWriter(folder, kind=kind)
    for at, add in ((0, 1.0), (step, 0.0)):
        writer.write("pairs", [
            {"step": at, "split": "eval", "role": "policy", "pair_id": i, "side": side, "sum_logp": total + add,
             "n_tokens": 10}
            for i in ids for side, total in (("chosen", -10.0), ("rejected", -20.0))
        ])  # fmt: skip
    if loss is not None:
        writer.write("history", [{"step": step, "split": "eval", "name": "loss", "value": loss, "weight": 2}])
    writer.update(**facts)
    writer.finish()


def test_runs_of_other_origin_data_step_or_loss_are_no_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two alike but for their seed; then one scored, one of other pairs, one of another last step,
    one imported log that names no pairs."""
    for seed in (0, 1):
        run_of(tmp_path / f"a{seed}", "trained", loss=0.4 + 0.2 * seed, training={"seed": seed})
    run_of(tmp_path / "b", "scored")
    run_of(tmp_path / "c", "trained", ids="xy")
    run_of(tmp_path / "d", "trained", step=12)
    writer = RunWriter(tmp_path / "f", kind="imported")
    writer.write("history", [{"step": 9, "split": "eval", "name": "loss", "value": 0.1, "weight": 2}])
    writer.finish()
    collected = sweep(tmp_path / "*")
    assert collected.groups["runs"].tolist() == [2, 1, 1, 1, 1]
    assert collected.groups["loss"].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.1])
    assert set(collected.apart) == {"origin", "data", "step"}
    assert collected.apart["origin"] == ["trained", "scored", "imported"] and collected.apart["step"] == ["9", "12"]
    assert main(["sweep", f"{tmp_path}/*"]) == 0
    said = capsys.readouterr().out
    told = "no seeds of one another where they differ in: origin (trained, scored, imported); data; step (9, 12)"
    assert told in " ".join(said.split())


def test_a_seed_may_draw_another_held_out_set_from_the_same_source(tmp_path: Path) -> None:
    """Other pairs of one source, named by its fingerprint, are seeds; the same pairs of two sources are not."""
    for name, ids, source in (("a", "ab", "f1"), ("b", "cd", "f1"), ("c", "cd", "f2")):
        run_of(tmp_path / name, "trained", ids=ids, data={"fingerprint": source})
    assert sweep(tmp_path / "*").groups["runs"].tolist() == [2, 1]


def test_a_scored_run_shows_its_numbers(tmp_path: Path) -> None:
    """Nothing in its history: 10 tokens at -10 nats are a perplexity of e, at -20 of e^2; both fell? unknown without a
    reference."""
    run_of(tmp_path / "s", "scored", loss=None)
    row = sweep(tmp_path / "s").runs.iloc[0]
    assert (row["chosen_ppl_seq_mean"], row["rejected_ppl_seq_mean"]) == pytest.approx((math.e, math.e**2))
    assert (row["step"], row["split"], row["origin"]) == (9, "eval", "scored") and math.isnan(row["both_fell"])


def test_paths_of_both_kinds_a_multirun_and_what_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An absolute and a relative name, one run named twice, a folder of jobs, and one that holds nothing."""
    finished(tmp_path / "multi" / "0", 0.5, 1, "seed=0")
    finished(tmp_path / "multi" / "1", 0.5, 1, "seed=1")
    finished(tmp_path / "one", 0.5, 1, "seed=0")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "one", str(tmp_path / "one"), str(tmp_path / "multi"), "empty", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(row["run"]).name for row in document["runs"]] == ["0", "1", "one"]
    assert document["not_runs"] == ["empty"]
    assert main(["sweep", "one", str(tmp_path / "multi" / "0"), "empty"]) == 0
    shown = capsys.readouterr().out
    assert "no run, left out: empty" in shown and "multi/0" in shown


def test_a_sweep_over_losses_keeps_what_was_set_beside_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`loss=ipo,hinge` is an override by the name of a column: two settings of two seeds each, their mean losses beside
    their names; `--against loss=ipo` finds its runs."""
    for i, (kind, seed, loss) in enumerate((("ipo", 0, 0.4), ("ipo", 1, 0.6), ("hinge", 0, 0.7), ("hinge", 1, 0.9))):
        finished(tmp_path / str(i), loss, 5, f"loss={kind}", f"seed={seed}")
    collected = sweep(tmp_path)
    assert collected.parameters == ["loss (set)", "seed"]
    assert collected.groups[["loss (set)", "runs"]].to_numpy().tolist() == [["ipo", 2], ["hinge", 2]]
    assert collected.groups["loss"].tolist() == pytest.approx([0.5, 0.8])
    assert main(["sweep", str(tmp_path), "--against", "loss=ipo"]) == 0
    said = capsys.readouterr().out
    assert "loss (set)" in said and "0.500 [0.400, 0.600]" in said


def test_a_formula_in_an_override_is_text_in_the_csv(tmp_path: Path) -> None:
    finished(tmp_path / "0", 0.5, 1, "name==cmd()", "x=1")
    finished(tmp_path / "1", 0.5, 1, "name=b", "x=1")
    assert main(["sweep", f"{tmp_path}/*", "--csv", str(tmp_path / "t.csv")]) == 0
    assert "'=cmd()" in (tmp_path / "t.csv").read_text()


def test_nothing_found_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiagError, match="no run found"):
        sweep(tmp_path / "*")
    assert main(["sweep", str(tmp_path / "*")]) == 1
    assert capsys.readouterr().err.startswith("dpo-diag sweep: no run found; in ")


def test_a_log_of_training_batches_is_shown_by_the_mean_of_its_last_rows(tmp_path: Path) -> None:
    """Eight rows of .7 ... the last three .3, .3, .9: .5, not the .9 of one batch."""
    writer = RunWriter(tmp_path / "r", kind="imported")
    values = [0.7, 0.6, 0.6, 0.5, 0.5, 0.3, 0.3, 0.9]
    rows = [{"step": i + 1, "split": "train", "name": "loss", "value": v} for i, v in enumerate(values)]
    writer.write("history", rows)
    writer.finish()
    assert sweep([tmp_path / "r"]).runs["loss"].tolist() == [pytest.approx(0.5)]


def test_the_legend_says_where_numbers_are_those_of_training_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten training rows 1.0, 0.9, ..., 0.1: the mean of the last three is 0.2, and that is no evaluation."""
    writer = RunWriter(tmp_path / "only_training")
    rows = [{"step": i, "split": "train", "name": "loss", "value": 1 - i / 10, "weight": 8} for i in range(10)]
    writer.write("history", rows, "train")
    writer.finish()
    assert main(["sweep", str(tmp_path / "only_training")]) == 0
    assert "loss and perplexities: mean of the last logged training rows, no evaluation" in capsys.readouterr().out
    finished(tmp_path / "evaluated", 0.5, 60)
    collected = sweep([str(tmp_path / "only_training"), str(tmp_path / "evaluated")])
    assert dict(zip(collected.runs["batches"], collected.runs["loss"], strict=True)) == {
        True: pytest.approx(0.2), False: 0.5,
    }  # fmt: skip
    assert main(["sweep", f"{tmp_path}/*"]) == 0
    legend = " ".join(capsys.readouterr().out.split())
    assert "loss and perplexities: last evaluation (of " in legend and "only_training: mean of" in legend
