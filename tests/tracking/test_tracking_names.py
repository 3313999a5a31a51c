"""Names, the outputs table, and the tracker that cannot stop a run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter
from dpo_diag.tracking import SafeTracker, make_tracker, metric_name, outputs_table, unique_name
from dpo_diag.tracking.safe import PATIENCE


def answers(rows: list[tuple[int, str, str, int, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["step", "model", "prompt_id", "sample", "text"]).assign(
        prompt="P", tags=[["a", "b"]] * len(rows), reference=None
    )


def test_a_metric_carries_its_split() -> None:
    assert metric_name("eval", "ppl_token/chosen") == "eval/ppl_token/chosen"


def test_names_tell_the_run_and_never_repeat(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sql_dpo" / "2026-11-22" / "3"
    first, second = unique_name(folder), unique_name(folder)
    assert first.startswith("sql_dpo-2026-11-22-3-")
    assert first != second


def test_outputs_become_one_row_per_prompt_and_one_column_per_checkpoint() -> None:
    table = outputs_table(
        answers([(10, "policy", "q1", 0, "b"), (0, "policy", "q1", 0, "a"), (0, "ref", "q1", 0, "r"),
                 (10, "policy", "q2", 0, "c"), (10, "policy", "q1", 1, "another sample")])
    )  # fmt: skip
    assert table.columns.tolist() == ["prompt_id", "prompt", "tags", "reference", "ref", "step 0", "step 10"]
    assert table.to_numpy().tolist() == [["q1", "P", "a, b", "", "r", "a", "b"], ["q2", "P", "a, b", "", "", "", "c"]]


def test_hostile_answers_are_cleaned_and_cut_before_they_leave() -> None:
    table = outputs_table(answers([(0, "policy", "q", 0, "\x1b[2J" + "x" * 20_000)]))
    assert table["step 0"].item().startswith("<U+001B>[2J")
    assert table["step 0"].item().endswith("… [+10004 characters]")


def test_no_outputs_give_an_empty_table() -> None:
    assert outputs_table(answers([])).shape == (0, 4)


class Failing:
    """Fails where it is told to, and counts what reached it."""

    def __init__(self, *bad: str) -> None:
        self.bad, self.calls = bad, []

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if name in self.bad:
            raise ConnectionError(f"{name} refused")

    def start(self, config: Any, run_name: str, folder: Any) -> dict[str, Any]:
        self._do("start")
        return {"kind": "failing"}

    def log(self, step: int, values: Any) -> None:
        self._do("log")

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        self._do("log_outputs")

    def finish(self, status: str = "finished") -> None:
        self._do("finish")


def test_a_failing_tracker_is_logged_once_and_then_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    inner = Failing("log", "finish")
    tracker = SafeTracker(inner)
    with caplog.at_level(logging.WARNING, "dpo_diag.tracking"):
        assert tracker.start({}, "r", ".") == {"kind": "failing"}
        for step in range(10):
            tracker.log(step, {"train/loss": 0.7})
        tracker.log_outputs(answers([]))
        tracker.finish()
        tracker.finish()
    assert [r.getMessage() for r in caplog.records] == [
        "tracking failed, the run goes on and its records are complete: could not log: ConnectionError: log refused"
    ]
    assert inner.calls == ["start", *["log"] * PATIENCE, "finish"]


def test_no_tag_hands_a_secret_on() -> None:
    assert make_tracker("none", tags=["hub_token=abcdef", "size=7b"]).options.tags == (
        "hub_token=[redacted]",
        "size=7b",
    )


def test_a_tracker_that_cannot_start_is_not_called_again() -> None:
    inner = Failing("start")
    tracker = SafeTracker(inner)
    where = tracker.start({}, "r", ".")
    tracker.log(0, {"train/loss": 0.7})
    tracker.finish()
    assert where == {"kind": "Failing", "failed": "could not start: ConnectionError: start refused"}
    assert inner.calls == ["start"]


def test_one_failure_between_successes_does_not_end_the_tracking() -> None:
    inner = Failing("log_outputs")
    tracker = SafeTracker(inner)
    tracker.start({}, "r", ".")
    for step in range(5):
        tracker.log_outputs(answers([]))
        tracker.log(step, {})
    assert tracker.active
    assert inner.calls.count("log") == 5


def test_an_interrupt_is_no_failure_of_the_tracker() -> None:
    class Interrupted(Failing):
        def log(self, step: int, values: Any) -> None:
            raise KeyboardInterrupt

    tracker = SafeTracker(Interrupted())
    tracker.start({}, "r", ".")
    with pytest.raises(KeyboardInterrupt):
        tracker.log(0, {})


@pytest.mark.parametrize("kind", ["wandb", "trackio", "mlflow", "swanlab", "tensorboard"])
def test_a_missing_package_stops_nothing(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    tracker = make_tracker(kind)
    where = tracker.start({}, "r", tmp_path)
    tracker.log(1, {"train/loss": 0.7})
    tracker.finish()
    assert f"needs {kind}, which is not installed" in where["failed"]
    assert len(tracker.failures) == 1


def test_no_tracking_does_nothing_and_an_unknown_kind_says_so() -> None:
    assert make_tracker("none").start({}, "r", ".") == {}
    with pytest.raises(DiagError, match="unknown tracker; got mlfow; expected one of mlflow, none, "):
        make_tracker("mlfow")


PLUGIN = """
from dpo_diag.tracking import TRACKERS

class FileTracker:
    def __init__(self, options):
        self.options = options
    def start(self, config, run_name, folder):
        self.file = open(f"{folder}/tracked.txt", "w", encoding="utf-8")
        return {"kind": "file", "project": self.options.project}
    def log(self, step, values):
        print(step, *(f"{k}={v}" for k, v in sorted(values.items())), file=self.file)
    def log_outputs(self, outputs):
        pass
    def finish(self, status="finished"):
        print(status, file=self.file)
        self.file.close()

TRACKERS.add("file", FileTracker)
"""


def test_a_plugin_adds_a_tracker_from_one_file(tmp_path: Path) -> None:
    """In a process of its own: a registered tracker stays for the process."""
    (tmp_path / "file_tracker.py").write_text(PLUGIN)
    writer = RunWriter(tmp_path / "run")
    writer.write("history", [{"step": 3, "split": "eval", "name": "loss", "value": 0.5, "weight": 4}])
    writer.finish()
    environment = {
        **os.environ, "DPO_DIAG_PLUGINS": "file_tracker",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }  # fmt: skip
    code = "from dpo_diag.commands.diag import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "track", str(tmp_path / "run"), "--to", "file", "--project", "mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"file": {"kind": "file", "project": "mine"}}), done.stderr
    assert (tmp_path / "run" / "tracked.txt").read_text() == "3 eval/loss=0.5\nfinished\n"
