"""Steps of rows that state none: from bars, epochs, totals; else rows are rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.said import stretch
from tests.importers.conftest import Importing
from tests.importers.forms import banner, console, frame, lines, log, state, summary, training
from tests.importers.reading import steps, value

UNSLOTH = "Num examples = 400 | Num Epochs = 2 | Total steps = 100\nTotal batch size (2 x 4 x 1) = 8 | x\n"
TENS = list(range(10, 101, 10))


def test_one_run_in_four_forms_has_one_diagnosis(tmp_path: Path, imported: Importing) -> None:
    """The same ten rows of steps 10 to 100: console with bars, console with a final summary, state, JSON lines."""
    rows = training()
    forms = {
        "bar": log(tmp_path / "bars.log", console(rows, 100)),
        "epochs": log(tmp_path / "rows.log", console(rows) + summary(100, 2.0)),
        "stated": lines(tmp_path / "rows.jsonl", rows),
    }
    _, run = imported(state(tmp_path / "trainer_state.json", rows))
    expected = explain(run)
    assert (expected["from_step"], expected["to_step"]) == (10, 100)
    for source, path in forms.items():
        _, run = imported(path)
        assert run.info.source.steps == source
        assert {**explain(run), "run": ""} == {**expected, "run": ""}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        pytest.param(lambda rows: console(rows) + summary(100, 2.0), "epochs", id="runtime x steps per second"),
        pytest.param(lambda rows: banner(400, 2, 8, 100) + console(rows[:6]), "epochs", id="banner of a killed run"),
        # max_steps ends the training inside its first epoch: "Num Epochs" is rounded up, 400 examples / 8 = 50 steps.
        pytest.param(lambda rows: banner(400, 1, 8, 10) + console(rows[:1]), "epochs", id="banner with max_steps"),
        pytest.param(
            lambda rows: (
                "Num examples = 400 | Num Epochs = 2 | Total steps = 100\nTotal batch size (2 x 4 x 1) = 8 | x\n"
                + console(rows[:6])
            ),
            "epochs",
            id="unsloth's banner",
        ),
        pytest.param(
            lambda rows: frame(2000, 2000, "Map: ", "99 examples/s") + console(rows, 100), "bar", id="a map bar before"
        ),
        pytest.param(
            lambda rows: "".join(console([r]) + (frame(10 * i, 100) + "\n") * (i == 5) for i, r in enumerate(rows, 1)),
            "epochs",
            id="one bar in the whole log",
        ),
    ],
)
def test_what_a_log_states_is_used(tmp_path: Path, imported: Importing, text, source: str) -> None:  # type: ignore[no-untyped-def]
    _, run = imported(log(tmp_path / "train.log", text(training())))
    found = steps(run, "loss")
    assert (found, run.info.source.steps) == (TENS[: len(found)], source)


def test_two_digit_epochs_are_put_on_the_grid(tmp_path: Path, imported: Importing) -> None:
    """300 steps an epoch: 0.03, 0.07, 0.1 are steps 9, 21, 30 by themselves, 10, 20, 30 at one interval."""
    rows = training(300, 10, per_epoch=300)
    assert [row["epoch"] for row in rows[:3]] == [0.03, 0.07, 0.1]
    _, run = imported(log(tmp_path / "train.log", console(rows) + summary(300, 1.0)))
    assert steps(run, "loss") == list(range(10, 301, 10))


def test_a_first_step_with_a_row_of_its_own(tmp_path: Path, imported: Importing) -> None:
    first = {**training()[0], "step": 1, "epoch": 0.02}
    _, run = imported(log(tmp_path / "train.log", console([first, *training()]) + summary(100, 2.0)))
    assert steps(run, "loss") == [1, *TENS]


def test_a_total_without_epochs_gives_the_interval_where_it_is_clear(tmp_path: Path, imported: Importing) -> None:
    """100 steps over 10 rows: every 10th. Over 3 rows: anything from 26 to 33, so rows are rows."""
    rows = [{k: v for k, v in row.items() if k != "epoch"} for row in training()]
    _, run = imported(log(tmp_path / "ten.log", console(rows) + summary(100, 2.0)))
    assert (steps(run, "loss"), run.info.source.steps) == (TENS, "interval")
    _, run = imported(log(tmp_path / "three.log", console(rows[:3]) + summary(100, 2.0)))
    assert (steps(run, "loss"), run.info.source.steps) == ([1, 2, 3], "counted")


def test_the_total_of_a_killed_run_says_nothing_of_its_interval(tmp_path: Path, imported: Importing) -> None:
    """4 rows of 1,250 steps stated in the banner: not every 312th."""
    rows = [{k: v for k, v in row.items() if k != "epoch"} for row in training()[:4]]
    _, run = imported(log(tmp_path / "train.log", banner(10_000, 1, 8, 1250) + console(rows)))
    assert (steps(run, "loss"), run.info.source.steps) == ([1, 2, 3, 4], "counted")


def test_a_bar_of_each_epoch_counts_on(tmp_path: Path, imported: Importing) -> None:
    """`Epoch 1/2: 50%| 25/50`, then `Epoch 2/2`: steps 25, 50, 75, 100."""
    text = "".join(
        frame(done, 50, f"Epoch {epoch}/2: ") + f"\n{{'loss': 0.{6 - epoch}, 'rewards/margins': 0.1}}\n"
        for epoch in (1, 2)
        for done in (25, 50)
    )
    _, run = imported(log(tmp_path / "train.log", text))
    assert (steps(run, "loss"), run.info.source.steps) == ([25, 50, 75, 100], "bar")


def test_a_step_in_a_line_above_its_row(tmp_path: Path, imported: Importing) -> None:
    """ "Step 500", then the row; a checkpoint's line that ends with a number is none."""
    text = "Step 500\n{'loss': 0.5, 'rewards/margins': 1.0}\n\nStep 1000\n{'loss': 0.4, 'rewards/margins': 1.5}\n"
    _, run = imported(log(tmp_path / "train.log", text))
    assert (steps(run, "loss"), run.info.source.steps) == ([500, 1000], "stated")
    _, run = imported(log(tmp_path / "other.log", text.replace("Step", "saved the checkpoint of step")))
    assert (steps(run, "loss"), run.info.source.steps) == ([1, 2], "counted")


def test_evaluation_bars_do_not_count(tmp_path: Path, imported: Importing) -> None:
    """Bars of 40 evaluation batches stand between training rows, as many as those of the training."""
    text = ""
    for row in training()[:4]:
        text += console([row], 100, int(row["step"]) - 1)
        text += "".join(frame(i, 40) for i in range(41)) + f"\n{{'eval_loss': 0.5, 'epoch': {row['epoch']}}}\n"
    _, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == steps(run, "loss", "eval") == [10, 20, 30, 40]
    assert value(run, "loss", 10, "eval") == 0.5


def test_rows_without_steps_do_not_join_those_of_a_source_that_has_them(tmp_path: Path, imported: Importing) -> None:
    """Ten console rows without any length beside the trainer's state: row 3 is not step 3."""
    rows = training()
    result, run = imported([log(tmp_path / "train.log", console(rows)), state(tmp_path / "trainer_state.json", rows)])
    assert steps(run, "loss") == TENS
    assert result["notes"] == ["train.log was left out: it states no steps (--logging-steps N gives them)"]
    _, run = imported([tmp_path / "train.log", tmp_path / "trainer_state.json"], logging_steps=10)
    assert (steps(run, "loss"), run.info.source.formats) == (TENS, ("hf", "console"))


@pytest.mark.parametrize(("broken", "codes"), [(False, {"DVG001", "DVG010"}), (True, {"DVG011", "DVG016", "DVG020"})])
def test_what_is_said_of_counted_rows_names_no_step(
    tmp_path: Path, imported: Importing, broken: bool, codes: set[str]
) -> None:
    """A chosen side that falls, a gradient of 0 at the end; broken: a spike, a NaN, a loss that climbs back."""
    rows = [{k: v for k, v in row.items() if k != "epoch"} for row in training(600)]
    for at, row in enumerate(rows):
        row["rewards/chosen"], row["logps/chosen"] = -0.1 * at, -100.0 - at
        row["grad_norm"] = 0.0 if at > 15 else 2.0
        if broken:
            row["loss"] = {20: 9.0, 30: float("nan")}.get(at, row["loss"] if at < 40 else 1.5 + 0.05 * at)
    _, run = imported(log(tmp_path / "train.log", console(rows)))
    document = explain(run)
    spoken = {c["code"]: c["reason"] for c in document["checks"] if c["outcome"] == "speaks"}
    assert codes <= set(spoken)
    said = [*spoken.values(), *(s["text"] for part in document["narrative"] for s in part["sentences"])]
    assert not [text for text in said if re.search(r"\bsteps? \d", text)]
    assert stretch(document) == "row 1 to 60"
    assert any(text.startswith("The log states no steps") for text in said)
