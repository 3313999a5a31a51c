"""Sources that hold several runs: the one taken is named, the others too, and `--run` chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value
from tests.importers.test_trackers import event_file


def wide(path: Path) -> Path:
    """W&B's export of two runs, the second one better; their names hold the separator and an equals sign."""
    runs = ("a - beta=0.1", "b - beta=0.5")
    header = ["train/global_step"] + [f"{r} - {m}" for r in runs for m in ("_step", "train/loss", "train/loss__MIN")]
    rows = [[10 * i, i, 0.6 + i / 100, 0, i, 0.4 + i / 100, 0] for i in range(1, 4)]
    path.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in [header, *rows]) + "\n")
    return path


def stacked(path: Path, key: str = "run_name") -> Path:
    """Rows of two runs below one another, as an API export holds them."""
    rows = [{key: r, "step": s, "loss": loss + s / 100} for r, loss in (("x", 0.6), ("y", 0.4)) for s in (1, 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def events(folder: Path) -> Path:
    """transformers' default: a folder for each start, named by date and host; the later one by its events' time."""
    for name, time, loss in (("Nov02_host", 2, 0.4), ("Nov01_host", 1, 0.6)):
        file = event_file(folder / name, [("train/loss", loss + s / 100, s) for s in (1, 2)])
        file.rename(file.with_name(f"events.out.tfevents.{time}.host"))
    return folder


def states(folder: Path) -> Path:
    """Two trainings' checkpoints in one folder; the second one got further."""
    for name, last, loss in (("lr1e-6", 1, 0.6), ("lr1e-5", 2, 0.4)):
        checkpoint = folder / name / f"checkpoint-{last}"
        checkpoint.mkdir(parents=True)
        rows = [{"step": s, "loss": loss + s / 100} for s in range(1, last + 1)]
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    return folder


def mlruns(folder: Path, names: tuple[str, ...] = ("one", "two")) -> Path:
    """MLflow's file store: metrics by file, a nested key, the run's name as a tag."""
    for name, loss in zip(names, (0.6, 0.4), strict=False):
        run = folder / "mlruns" / "123" / f"id_{name}"
        for file, lines in {
            "metrics/loss": [f"170000 {loss + s / 100} {s}" for s in (1, 2)], "metrics/eval/loss": ["170000 NaN 2"],
            "params/beta": ["0.25"], "params/loss_type": ["['sigmoid', 'sft']"], "tags/mlflow.runName": [name],
        }.items():  # fmt: skip
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).write_text("\n".join(lines))
    return folder / "mlruns"


SOURCES = {
    "wide": (lambda tmp: wide(tmp / "export.csv"), "a - beta=0.1", "b - beta=0.5", 10, 0.61, 0.41),
    "stacked": (lambda tmp: stacked(tmp / "log.jsonl"), "x", "y", 1, 0.61, 0.41),
    "events": (lambda tmp: events(tmp / "runs"), "Nov02_host", "Nov01_host", 1, 0.41, 0.61),
    "states": (lambda tmp: states(tmp / "out"), "lr1e-5", "lr1e-6", 1, 0.41, 0.61),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_run_taken_is_named_truly(name: str, tmp_path: Path, imported: Importing) -> None:
    make, default, other, step, of_default, of_other = SOURCES[name]
    path = make(tmp_path)
    for asked, taken, left, loss in ((None, default, other, of_default), (other, other, default, of_other)):
        result, run = imported(path, run=asked)
        assert value(run, "loss", step) == pytest.approx(loss)
        assert f"2 runs; taken: {taken}; left out: {left} (--run NAME chooses)" in result["notes"]
        assert run.info.source.details["run_name"] == taken
    with pytest.raises(DiagError, match=r"no such run; in --run, .*; got nope; expected one of ") as raised:
        imported(path, run="nope")
    assert raised.value.usage
    assert default in str(raised.value)
    assert other in str(raised.value)


def test_a_log_that_names_no_runs_does_not_take_one(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.6\n")
    with pytest.raises(DiagError, match="the log names no runs") as raised:
        imported(path, run="best")
    assert raised.value.usage


def test_runs_of_events_are_never_merged(tmp_path: Path, imported: Importing) -> None:
    """By format name, from the folder above, and for one file: a run's points only."""
    folder = events(tmp_path / "out" / "runs")
    result, run = imported(tmp_path / "out", "tensorboard")
    assert (result["read"], result["duplicates"], value(run, "loss", 2)) == (2, 0, pytest.approx(0.42))
    assert result["merged"] == []
    _, run = imported(folder / "Nov01_host")
    assert value(run, "loss", 2) == pytest.approx(0.62)
    _, run = imported(tmp_path / "out", run="Nov01_host")  # the last part of runs/Nov01_host
    assert value(run, "loss", 2) == pytest.approx(0.62)


def test_folders_of_add_scalars_belong_to_their_run(tmp_path: Path, imported: Importing) -> None:
    """loss_train/ and loss_eval/ with the tag loss; rewards_chosen/ with rewards; a folder of hyperparameters."""
    run_folder = tmp_path / "runs" / "one"
    event_file(run_folder, [("learning_rate", 0.5, 1)])
    event_file(run_folder / "loss_train", [("loss", 0.6875, 1), ("loss", 0.625, 2)])
    event_file(run_folder / "loss_eval", [("loss", 0.75, 2)])
    event_file(run_folder / "rewards_chosen", [("rewards", 0.125, 2)])
    event_file(run_folder / "1700000000.5", [], {"beta": 0.25})
    result, run = imported(tmp_path)
    assert result["notes"] == []
    assert (value(run, "loss", 2), value(run, "loss", 2, "eval"), value(run, "rewards/chosen", 2)) == (
        0.625,
        0.75,
        0.125,
    )
    assert (value(run, "learning_rate", 1), run.info.beta) == (0.5, 0.25)


def test_folders_named_by_split_are_one_run(tmp_path: Path, imported: Importing) -> None:
    event_file(tmp_path / "logs" / "train", [("loss", 0.6875, 1)])
    event_file(tmp_path / "logs" / "validation", [("loss", 0.75, 1)])
    result, run = imported(tmp_path / "logs")
    assert (value(run, "loss", 1), value(run, "loss", 1, "eval"), result["notes"]) == (0.6875, 0.75, [])


def test_a_state_beside_several_runs_of_events(tmp_path: Path, imported: Importing) -> None:
    """The state and the latest events are the last start; `--run` of an older one takes its events alone."""
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.41}]}))
    events(tmp_path / "runs")
    result, run = imported(tmp_path)
    assert len(result["merged"]) == 2
    assert steps(run, "loss") == [1, 2]
    assert any("taken: runs/Nov02_host" in n for n in result["notes"])
    _, run = imported(tmp_path, run="Nov01_host")
    assert value(run, "loss", 1) == pytest.approx(0.61)


def test_mlflow(tmp_path: Path, imported: Importing) -> None:
    folder = mlruns(tmp_path, ("one",))
    result, run = imported(folder)
    assert (result["format"], result["read"], value(run, "loss", 2)) == ("mlflow", 2, pytest.approx(0.62))
    assert steps(run, "loss", "eval") == [2]
    assert (run.info.loss.types, run.info.beta) == (("sigmoid", "sft"), 0.25)
    mlruns(tmp_path)
    with pytest.raises(DiagError, match=r"which run; in .*; got one, two; hint: name one with --run NAME"):
        imported(folder)
    for name in ("two", "id_two", "123/id_two"):
        _, run = imported(folder, run=name)
        assert value(run, "loss", 1) == pytest.approx(0.41)


def test_splits_before_a_dash_are_no_runs(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,train - loss,eval - loss\n1,0.6,0.7\n")
    _, run = imported(path)
    assert (value(run, "loss", 1), value(run, "loss", 1, "eval")) == (0.6, 0.7)


def test_a_column_of_runs_with_rows_that_name_none(tmp_path: Path, imported: Importing) -> None:
    path = stacked(tmp_path / "log.jsonl", "run")
    path.write_text(path.read_text() + '{"step": 3, "loss": 0.9}\n')
    result, run = imported(path, run="unnamed")
    assert steps(run, "loss") == [3]
    assert "3 runs; taken: unnamed; left out: x, y (--run NAME chooses)" in result["notes"]


def test_one_wandb_file_is_its_run(tmp_path: Path, imported: Importing) -> None:
    """What is asked for stands in the folder's name, the file's, or the run's id; see test_trackers for the file."""
    (tmp_path / "wandb").mkdir()
    for id_ in ("abc", "def"):
        folder = tmp_path / "wandb" / f"offline-run-2026-{id_}"
        folder.mkdir()
        (folder / f"run-{id_}.wandb").write_bytes(b":W&B")
    with pytest.raises(DiagError, match=r"which run; in .*; got abc, def"):
        imported(tmp_path)
    with pytest.raises(DiagError, match=r"no such run; .*; got ghi; expected one of abc, def"):
        imported(tmp_path, run="ghi")
