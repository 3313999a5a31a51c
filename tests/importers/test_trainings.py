"""Several trainings in one log: the last one alone where it began again, one run where it was resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.diagnosis import explain
from tests.importers.conftest import Importing
from tests.importers.forms import banner, console, lines, log, summary, training
from tests.importers.reading import steps, value

TENS = list(range(10, 101, 10))
ALONE = "2 trainings in this file: number 2 is taken (10 rows), 1 left out (4 rows; --run NUMBER takes another)"
RESUMED = "resumed from a checkpoint once: of each step the last row is kept"
KILLED, AGAIN = training()[:4], training(seed=1)


def spoken(run) -> set[str]:  # type: ignore[no-untyped-def]
    return {c["code"] for c in explain(run)["checks"] if c["outcome"] == "speaks"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(console(KILLED, 100) + "OutOfMemoryError\n" + console(AGAIN, 100), id="bars"),
        pytest.param(console(KILLED) + console(AGAIN) + summary(100, 2.0), id="epochs"),
        pytest.param(banner(400, 2, 8, 100) + console(KILLED) + banner(400, 2, 8, 100) + console(AGAIN), id="banners"),
        pytest.param(console(KILLED, 200) + console(AGAIN, 100), id="another length"),
    ],
)
def test_a_training_that_began_again_is_taken_alone(tmp_path: Path, imported: Importing, text: str) -> None:
    """Killed after 4 rows of 10 steps, then started anew: the ten rows of the second, and no alarm of two starts."""
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == TENS
    assert [value(run, "loss", s) for s in TENS] == [row["loss"] for row in AGAIN]
    assert result["notes"] == [ALONE]
    assert not spoken(run) & {"DVG007", "DVG021"}
    _, run = imported(tmp_path / "train.log", run="1")
    assert run.history.query("name == 'loss'")["value"].tolist() == [row["loss"] for row in KILLED]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(console(KILLED, 100) + console(training(after=20, seed=1), 100, at=20), id="bars"),
        pytest.param(console(KILLED) + console(training(after=20, seed=1)) + summary(100, 2.0), id="epochs"),
    ],
)
def test_a_resumed_training_is_one_run(tmp_path: Path, imported: Importing, text: str) -> None:
    """Killed after step 40, resumed from the checkpoint of step 20: 10 and 20 of the first part, then the second."""
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == TENS
    expected = [row["loss"] for row in (*KILLED[:2], *AGAIN[2:])]
    assert [value(run, "loss", s) for s in TENS] == expected
    assert RESUMED in result["notes"]
    assert "DVG021" in spoken(run)
    assert [(b["from"], b["to"]) for b in run.info.source.backtracks] == [(40, 30)]


def test_a_resume_of_counted_rows_counts_from_where_it_began(tmp_path: Path, imported: Importing) -> None:
    """Nothing but epochs, no length: rows 1 to 4, then 3 to 10."""
    text = console(KILLED) + console(training(after=20, seed=1))
    _, run = imported(log(tmp_path / "train.log", text))
    assert (steps(run, "loss"), run.info.source.steps) == (list(range(1, 11)), "counted")
    assert value(run, "loss", 3) == AGAIN[2]["loss"]


def test_a_second_training_of_one_row_does_not_replace_the_first(tmp_path: Path, imported: Importing) -> None:
    result, run = imported(log(tmp_path / "train.log", console(AGAIN, 100) + console(KILLED[:1], 100)))
    assert steps(run, "loss") == TENS
    assert value(run, "loss", 10) == AGAIN[0]["loss"]
    assert "number 1 is taken (10 rows), 1 left out (1 rows" in result["notes"][0]


def test_of_several_trainings_of_a_sweep_the_last_is_taken(tmp_path: Path, imported: Importing) -> None:
    text = "".join(console(training(seed=seed), 100) for seed in (3, 4, 5))
    result, run = imported(log(tmp_path / "train.log", text))
    assert value(run, "loss", 50) == training(seed=5)[4]["loss"]
    assert result["notes"] == [
        "3 trainings in this file: number 3 is taken (10 rows), 2 left out (20 rows; --run NUMBER takes another)"
    ]


@pytest.mark.parametrize("key", ["step", "current_steps", "global_step"])
def test_json_lines_that_two_trainings_wrote(tmp_path: Path, imported: Importing, key: str) -> None:
    """Appended to one file: the second alone where it began again, both where it was resumed."""

    def named(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{key if k == "step" else k: v for k, v in row.items()} for row in rows]

    longer, again = training(seed=2), training(seed=1)[:4]
    result, run = imported(lines(tmp_path / "again.jsonl", named(longer + again)))
    assert steps(run, "loss") == [10, 20, 30, 40]
    assert "number 2 is taken (4 rows)" in " ".join(result["notes"])
    result, run = imported(lines(tmp_path / "resumed.jsonl", named(KILLED + training(after=20, seed=1))))
    assert steps(run, "loss") == TENS and RESUMED in result["notes"]
    assert value(run, "loss", 30) == AGAIN[2]["loss"]


def test_late_lines_are_no_restart(tmp_path: Path, imported: Importing) -> None:
    """Rows that were written out of order: every step once, in order."""
    rows = training()
    _, run = imported(lines(tmp_path / "late.jsonl", [rows[1], rows[0], *rows[3:6], rows[2], *rows[6:]]))
    assert steps(run, "loss") == TENS
