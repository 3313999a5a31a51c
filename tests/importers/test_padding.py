"""NaN that fills a table is no value of the training; NaN of the training stays, and DVG011 says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.importers.merged import last_of_each_step
from dpo_diag.importers.padding import not_logged
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value

NAN = math.nan


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def padded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with every key, NaN where it has none: as `DataFrame(rows).to_dict("records")`."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key, NAN) for key in keys} for row in rows]


def training(n: int = 10) -> list[dict[str, Any]]:
    """A row every 10 steps, an evaluation with every fifth, a final summary."""
    rows: list[dict[str, Any]] = []
    for i in range(1, n + 1):
        rows.append({"step": 10 * i, "loss": 0.7 - 0.01 * i, "rewards/chosen": 0.1 * i, "learning_rate": 1e-6})
        if i % 5 == 0:
            rows.append({"step": 10 * i, "eval_loss": 0.65 - 0.01 * i, "eval_rewards/chosen": 0.1 * i})
    return [*rows, {"step": 10 * n, "train_runtime": 3.5, "train_loss": 0.65}]


def dvg011(run: Any) -> str:
    return str(next(c["outcome"] for c in explain(run)["checks"] if c["code"] == "DVG011"))


@pytest.mark.parametrize("form", ["jsonl", "csv", "csv_nan", "reversed"])
def test_what_a_table_fills_up_is_not_logged(form: str, tmp_path: Path, imported: Importing) -> None:
    """As JSON lines, as CSV with empty and with `nan` cells, and with the columns the other way round."""
    frame = pd.DataFrame(training())
    frame = frame[frame.columns[::-1]] if form == "reversed" else frame
    path = tmp_path / ("log.csv" if form.startswith("csv") else "log.jsonl")
    if form.startswith("csv"):
        frame.to_csv(path, index=False, na_rep="nan" if form == "csv_nan" else "")
    else:
        jsonl(path, padded(frame.to_dict("records")))
    result, run = imported(path)
    assert steps(run, "loss") == steps(run, "rewards/chosen") == list(range(10, 101, 10))
    assert steps(run, "loss", "eval") == [50, 100]
    assert value(run, "loss", 50) == pytest.approx(0.65)
    assert value(run, "loss", 100) == pytest.approx(0.6)  # neither the summary's 0.65 nor the evaluation's NaN
    assert np.isfinite(run.history["value"]).all()
    assert (result["notes"], result["summary_rows"]) == ([], 1)
    assert dvg011(run) == "silent"


def test_nan_beside_numbers_of_its_split_is_the_training_s(tmp_path: Path, imported: Importing) -> None:
    """From step 70 on loss and rewards are NaN, the learning rate is not: also in a padded table."""
    rows = [
        row | ({"loss": NAN, "rewards/chosen": NAN} if row["step"] >= 70 and "loss" in row else {})
        for row in training()
    ]
    _, run = imported(jsonl(tmp_path / "log.jsonl", padded(rows)))
    assert [math.isnan(value(run, "loss", step)) for step in (60, 70, 100)] == [False, True, True]
    assert steps(run, "loss", "eval") == [50, 100]
    assert dvg011(run) == "speaks"


@pytest.mark.parametrize("keys", [("loss",), ("loss", "rewards/chosen")])
def test_rows_of_one_split_keep_their_nan(keys: tuple[str, ...], tmp_path: Path, imported: Importing) -> None:
    """A row that names nothing but what the training logs says that it is NaN, even of all of it."""
    rows = [{"step": i, **dict.fromkeys(keys, 0.6 if i < 6 else NAN)} for i in range(1, 11)]
    _, run = imported(jsonl(tmp_path / "log.jsonl", rows))
    assert [math.isnan(value(run, "loss", i)) for i in (5, 6, 10)] == [False, True, True]
    assert dvg011(run) == "speaks"


def test_a_training_that_ends_in_nan_without_a_learning_rate(tmp_path: Path, imported: Importing) -> None:
    """Four rows at the end hold nothing at all: the training's loss is NaN there, the evaluation was not logged."""
    rows = [{"step": i, "loss": 0.6, **({"eval_loss": 0.6} if i % 5 == 0 else {})} for i in range(1, 11)]
    rows += [{"step": i, "loss": NAN} for i in range(11, 15)]
    _, run = imported(jsonl(tmp_path / "log.jsonl", padded(rows)))
    assert [math.isnan(value(run, "loss", i)) for i in (10, 11, 14)] == [False, True, True]
    assert steps(run, "loss", "eval") == [5, 10]
    _, run = imported(jsonl(tmp_path / "short.jsonl", padded(rows[:12])))
    assert steps(run, "loss") == list(range(1, 11))


def test_a_metric_of_another_cadence(tmp_path: Path, imported: Importing) -> None:
    """The learning rate in every row, the loss in every fifth; the last rows come before the next one is due."""
    rows = [{"step": i, "lr": 1e-6, "loss": 0.6 if i % 5 == 0 else NAN} for i in range(1, 23)]
    _, run = imported(jsonl(tmp_path / "log.jsonl", rows))
    assert steps(run, "loss") == [5, 10, 15, 20]
    assert dvg011(run) == "silent"


def column(*nan: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A metric beside one that is always there; 1 where it is NaN."""
    return np.array([[bool(x), False] for x in nan])


@pytest.mark.parametrize(
    ("nan", "absent"),
    [
        ((1, 0, 1, 0, 1, 0, 1), True),  # every second row
        ((0, 1, 1, 0, 1, 1, 0, 1), True),  # every third
        ((1, 1, 1, 1, 0), True),  # once, at the end
        ((0, 0, 0, 1, 0, 0, 0, 1, 0), False),  # a few: spikes
        ((0, 0, 0, 1, 1, 1), False),  # from a row on
        ((0, 1, 0, 1, 0, 1, 1, 1, 1), False),  # every second row, and NaN at the end
        ((1, 1, 1, 1), False),  # never a number
        ((1, 0, 0, 0), False),  # fp16: the first step overflows
        ((0, 1, 0, 1, 1, 1, 1, 1, 0, 1), False),  # no rhythm
    ],
)
def test_which_nan_is_a_cadence(nan: tuple[int, ...], absent: bool) -> None:
    found = not_logged(column(*nan), ["train", "train"])
    if absent:
        assert (found[:, 0] == np.array(nan, dtype=bool)).all()
    elif nan == (0, 1, 0, 1, 0, 1, 1, 1, 1):
        assert not found[5:, 0].any()  # the tail is longer than two of its gaps
    else:
        assert not found.any()


@pytest.mark.parametrize(
    ("train", "eval_", "absent_train", "absent_eval"),
    [
        ("00010001", "11101110", "11101110", "00010001"),  # rows of one or the other
        ("11111", "00100", "00000", "11011"),  # an evaluation beside every third row of the training
        ("1110", "1111", "", ""),  # both in every row, then NaN of the training
        ("1" * 9 + "0", "1" * 10, "", ""),
        ("1" * 20, "1" * 18 + "00", "", ""),  # or of the evaluation
        ("1" * 9 + "0" + "1" * 9, "1" * 19, "", ""),  # or once
        ("0000", "1111", "", ""),  # or always
        ("11110000", "00001000", "00001000", "11110111"),  # train is logged no more, and is NaN: four rows of nothing
        ("1111000", "0000100", "0000111", "1111011"),  # two are a remark
    ],
)
def test_which_split_a_row_belongs_to(train: str, eval_: str, absent_train: str, absent_eval: str) -> None:
    """1 where a number stands; one metric a split."""
    nan = ~np.array([[c == "1" for c in text] for text in (train, eval_)]).T
    found = not_logged(nan, ["train", "eval"])
    expected = (nan[:, 0] & _ones(train, absent_train), nan[:, 1] & _ones(eval_, absent_eval))
    assert (np.array(expected) == found.T).all()


def _ones(row: str, absent: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([c == "1" for c in absent.ljust(len(row), "0")])


def test_a_number_of_the_same_step_stands_over_nan() -> None:
    """Step 2 is written as 0.5 and then as NaN, step 3 as NaN alone, step 4 as 1 and then 2."""
    rows = pd.DataFrame({"step": [2, 2, 3, 4, 4], "epoch": 0.0, "value": [0.5, NAN, NAN, 1.0, 2.0]})
    kept, repeats = last_of_each_step(rows)
    assert kept["value"].tolist()[::2] == [0.5, 2.0]
    assert math.isnan(kept["value"].tolist()[1])
    assert repeats.dropped == 2


def test_a_number_of_another_source_stands_over_nan(tmp_path: Path, imported: Importing) -> None:
    """A console that rounds to `nan` beside a state that has the number, whichever is read first."""
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": [{"step": 1, "loss": NAN, "lr": 1.0}, {"step": 2, "loss": 0.5}]}))
    other = jsonl(tmp_path / "log.jsonl", [{"step": 1, "loss": 0.625}, {"step": 2, "loss": NAN}])
    _, run = imported([state, other])
    assert (value(run, "loss", 1), value(run, "loss", 2)) == (0.625, 0.5)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_rows_of_a_machine_are_none_of_the_training(form: str, tmp_path: Path, imported: Importing) -> None:
    """W&B's own step, and rows that hold a GPU's load alone: no NaN of the loss, no restart of the training."""
    rows: list[dict[str, Any]] = []
    for i in range(1, 21):
        rows.append({"_step": 3 * i, "train/loss": 0.7 - i / 100, "train/global_step": 10 * i})
        if i % 3 == 0:
            rows.append({"_step": 3 * i + 1, "gpu/load": 99.0})
        if i % 10 == 0:
            rows.append({"_step": 3 * i + 2, "eval/loss": 0.7 - i / 100, "train/global_step": 10 * i})
    frame = pd.DataFrame(rows)
    path = tmp_path / f"log.{form}"
    if form == "jsonl":
        jsonl(path, padded(rows))
    elif form == "csv":
        frame.to_csv(path, na_rep="NaN")
    else:
        frame.to_parquet(path)
    result, run = imported(path)
    assert result["notes"] == []
    assert (steps(run, "loss"), steps(run, "loss", "eval")) == (list(range(10, 201, 10)), [100, 200])
    assert np.isfinite(run.history["value"]).all()
