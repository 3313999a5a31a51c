"""A run in its trackers: several at once, nothing twice, what was found in it; calls that are bounded in time."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.config import Config
from dpo_diag.config_checks import check
from dpo_diag.errors import DiagError
from dpo_diag.records.adding import added_to
from dpo_diag.records.tracked import tracked_places
from dpo_diag.tracking import TRACKERS, SafeTracker, Session, TrackerOptions, findings_of, is_sent, kinds_of, mirror
from dpo_diag.tracking.bounded import Bounded, TooSlow
from dpo_diag.tracking.mirror import shown_config


class Kept:
    """Keeps what it is told, in the class: one store for all of a test."""

    told: ClassVar[list[tuple[Any, ...]]] = []
    fails: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options

    def _take(self, *what: Any) -> None:
        if what[0] in self.fails:
            raise ConnectionError("refused")
        self.told.append(what)

    def start(self, config: Any, run_name: str, folder: Any) -> dict[str, Any]:
        self._take("start", run_name, self.options.earlier.get("id"))
        return {"kind": "kept", "id": "one", "name": run_name}

    def log(self, step: int, values: Any) -> None:
        self._take("log", step, dict(values))

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        self._take("outputs", len(outputs))

    def log_findings(self, findings: Any) -> None:
        self._take("findings", findings.summary["diag/harm"])

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        self._take("alert", step, title, text, level)

    def finish(self, status: str = "finished") -> None:
        self._take("finish", status)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    TRACKERS.load()
    kind = type("Store", (Kept,), {"told": [], "fails": ()})
    monkeypatch.setitem(TRACKERS._entries, "kept", kind)
    return kind


def again(folder: Path, kept: type[Kept]) -> list[tuple[Any, ...]]:
    """What a further mirror of the folder tells."""
    kept.told.clear()
    run = load_run(folder)
    mirror(run, Session(["kept"], folder, {"kept": {"id": "one", "name": "mine"}}))
    return list(kept.told)


def test_the_records_the_answers_and_the_findings_are_sent_once(run_folder: Path, kept: type[Kept]) -> None:
    run = load_run(run_folder)
    assert not is_sent(run, "kept")
    places = mirror(run, Session(["kept"], run_folder), "mine")
    assert places == {"kept": {"kind": "kept", "id": "one", "name": "mine"}}
    told = kept.told
    assert [t[:2] for t in told if t[0] == "log"] == [("log", 0), ("log", 10)]
    assert told[1][2] == {"eval/loss": 0.693}
    assert told[2][2]["held_out/score/accuracy"] == 0.25
    assert told[2][2]["train/epoch"] == 0.5
    assert [t for t in told if t[0] not in ("log", "start")] == [
        ("outputs", 2),
        ("findings", "harmful"),
        ("finish", "finished"),
    ]
    assert is_sent(load_run(run_folder), "kept")
    assert again(run_folder, kept) == [("start", "mine", "one"), ("finish", "finished")]


def test_only_what_is_new_is_sent_later(run_folder: Path, kept: type[Kept]) -> None:
    """A score of a new name at old steps, and a later row of a known one."""
    mirror(load_run(run_folder), Session(["kept"], run_folder), "mine")
    rows = [{"step": s, "split": "eval", "name": n, "value": v, "weight": 4}
            for s, n, v in ((0, "score/late", 0.1), (10, "score/late", 0.2), (20, "loss", 0.4))]  # fmt: skip
    with added_to(run_folder) as (writer, _):
        writer.write("history", rows, "later")
    assert not is_sent(load_run(run_folder), "kept")
    told = again(run_folder, kept)
    assert [t[1:] for t in told if t[0] == "log"] == [
        (0, {"eval/score/late": 0.1}), (10, {"eval/score/late": 0.2}), (20, {"eval/loss": 0.4}),
    ]  # fmt: skip
    assert [t[0] for t in told if t[0] != "log"] == ["start", "findings", "finish"]  # there are best values now


def test_a_row_at_a_step_already_passed_is_named(run_folder: Path, kept: type[Kept]) -> None:
    session = Session(["kept"], run_folder)
    mirror(load_run(run_folder), session, "mine")
    with added_to(run_folder) as (writer, _):
        writer.write("history", [{"step": 5, "split": "eval", "name": "loss", "value": 0.6, "weight": 4}], "later")
    assert session.sent["kept"].missed(load_run(run_folder)) == ["eval/loss"]
    assert not any(t[0] == "log" for t in again(run_folder, kept))


def test_what_was_not_taken_is_sent_the_next_time(run_folder: Path, kept: type[Kept]) -> None:
    kept.fails = ("outputs",)
    mirror(load_run(run_folder), Session(["kept"], run_folder), "mine")
    kept.fails = ()
    assert again(run_folder, kept) == [("start", "mine", "one"), ("outputs", 2), ("finish", "finished")]


def test_one_that_fails_leaves_the_others_whole(
    run_folder: Path, kept: type[Kept], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = type("Broken", (Kept,), {"told": [], "fails": ("start",)})
    monkeypatch.setitem(TRACKERS._entries, "broken", broken)
    with caplog.at_level(logging.WARNING, "dpo_diag.tracking"):
        session = Session(["broken", "kept"], run_folder)
        mirror(load_run(run_folder), session, "mine")
    assert list(session.failures) == ["broken"]
    assert session.places["broken"] == {"kind": "broken", "failed": "could not start: ConnectionError: refused"}
    assert ("findings", "harmful") in kept.told
    assert len(caplog.records) == 1


def test_a_resumed_training_sends_nothing_that_its_tracker_holds(run_folder: Path, kept: type[Kept]) -> None:
    """Killed at step 10 and resumed at step 0: step 10 comes again and is held already, step 20 is new."""
    session = Session(["kept"], run_folder, {"kept": {"id": "one"}})
    session.resumed_after(load_run(run_folder))
    session.start({}, "mine")
    session.log(10, {"eval/loss": 0.5})
    session.log(20, {"eval/loss": 0.4})
    assert kept.told == [("start", "mine", "one"), ("log", 20, {"eval/loss": 0.4})]


def test_alerts_reach_every_tracker_that_has_them(run_folder: Path, kept: type[Kept]) -> None:
    session = Session(["none", "kept"], run_folder)
    session.start({}, "mine")
    session.alert(3, "loss_spike", "loss 9")
    assert kept.told[-1] == ("alert", 3, "loss_spike", "loss 9", "warn")


def test_kinds_are_one_or_several() -> None:
    assert kinds_of("none") == []
    assert kinds_of("wandb") == ["wandb"]
    assert kinds_of(["wandb", "mlflow", "wandb", "none"]) == ["wandb", "mlflow"]
    config = Config()
    config.model.kind, config.data.kind, config.task.kind = "task", "task", "sql"
    config.tracking.kind = ["wandb", 3]
    with pytest.raises(DiagError, match=r"tracking\.kind"):
        check(config)
    config.tracking.kind, config.tracking.start_timeout = ["wandb", "mlflow"], 0
    with pytest.raises(DiagError, match=r"tracking\.start_timeout"):
        check(config)


def test_places_of_older_runs_are_read() -> None:
    assert tracked_places({"kind": "wandb", "id": "x"}) == {"wandb": {"kind": "wandb", "id": "x"}}
    assert tracked_places({"wandb": {"id": "x"}, "mlflow": {"id": "y"}}) == {
        "wandb": {"id": "x"},
        "mlflow": {"id": "y"},
    }
    assert tracked_places(None) == {}


def test_findings_are_the_verdict_the_best_values_and_two_tables(run_folder: Path) -> None:
    """eval/loss is best (lowest) at step 10; the score was measured once, so it has no best."""
    found = findings_of(load_run(run_folder))
    assert found.summary == {
        "diag/verdict": "displaced", "diag/harm": "harmful", "diag/headline": "Both fell",
        "diag/text": "Accuracy fell <U+202E> too.", "diag/checks": "DVG001", "diag/n_checks": 1, "diag/from_step": 0,
        "diag/to_step": 10, "diag/n_pairs": 4, "diag/loss_delta": -0.193, "diag/loss_chosen_part": 0.1,
        "diag/loss_rejected_part": -0.293, "diag/dlog_ppl_token/chosen": 0.405, "diag/quadrant/both_fell": 0.75,
        "best/eval/loss": 0.5, "best_step/eval/loss": 10,
    }  # fmt: skip
    assert found.checks["code"].tolist() == ["DVG001", "DVG002"]
    assert found.pairs.to_dict("records") == [
        {"pair_id": "p1", "share_of_rise": 0.6, "prompt": "1+1?", "chosen": "2", "rejected": "3"}
    ]
    assert found.report == run_folder / "report.html"


def test_a_run_that_nobody_explained_has_no_findings(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").finish()
    assert not findings_of(load_run(tmp_path / "r"))


def test_the_config_begins_with_what_runs_are_compared_by() -> None:
    config = {
        "checks": {"confidence": 0.99, "verdict": {"least_harm": 0.5}}, "name": "n", "tracking": {"kind": "wandb"},
        "trainer": {"max_steps": 3, "learning_rate": 1e-5}, "loss": {"types": ["sigmoid"], "beta": 0.1}, "data": {},
    }  # fmt: skip
    shown = shown_config(config)
    assert list(shown) == ["loss", "trainer", "data", "name", "checks"]
    assert (next(iter(shown["loss"])), next(iter(shown["trainer"]))) == ("beta", "learning_rate")
    assert shown["checks"] == {"verdict.least_harm": 0.5}  # 0.99 is the default


def test_a_call_that_does_not_return_costs_its_limit_and_no_other_is_made() -> None:
    """The thread is released at the end of the test; until then it would have waited for ever."""
    bounded, release, calls = Bounded(), threading.Event(), []
    with pytest.raises(TooSlow, match=r"no answer within 0.01 s"):
        bounded(release.wait, 0.01)
    with pytest.raises(TooSlow, match="an earlier call has not returned"):
        bounded(lambda: calls.append(1), 1)
    release.set()
    assert calls == []


def test_a_call_that_does_not_return_does_not_silence_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Clients that print are called with standard output put away: one that hangs must not take the run's last line."""
    bounded, release, began = Bounded(), threading.Event(), threading.Event()

    def hangs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            print("a client's own word")
            began.set()
            release.wait()

    with pytest.raises(TooSlow):
        bounded(hangs, 0.5)
    assert began.is_set()
    print("runs/mine")
    release.set()
    assert capsys.readouterr().out == "runs/mine\n"


def test_calls_are_made_in_one_thread_and_raise_what_they_raise() -> None:
    bounded = Bounded()
    first = bounded(threading.get_ident, 5)
    assert bounded(threading.get_ident, 5) == first != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 / 0, 5)
    assert not bounded.stuck
    bounded.end()


def test_a_tracker_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging(Kept):
        told: ClassVar[list[tuple[Any, ...]]] = []

        def log(self, step: int, values: Any) -> None:
            release.wait()

    monkeypatch.setattr(sys.modules[SafeTracker.__module__], "CALL_LIMIT", 0.01)
    tracker = SafeTracker(Hanging(TrackerOptions()))
    with caplog.at_level(logging.WARNING, "dpo_diag.tracking"):
        tracker.start({}, "r", ".")
        assert not tracker.log(1, {})
        assert not tracker.log(2, {})
        tracker.finish()
    release.set()
    assert [r.getMessage() for r in caplog.records] == [
        "tracking failed, the run goes on and its records are complete: could not log: no answer within 0.01 s"
    ]
    assert [t[0] for t in Hanging.told] == ["start"]
