"""What a run that checkpoints are measured into says of how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.inference.run_folders import added_to
from dpo_diag.records import RunWriter, load_run


def failing(folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), added_to(folder):
        raise error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(ValueError("no room\nleft"), "failed", "ValueError: no room"), (KeyboardInterrupt(), "interrupted", None)],
)
def test_a_new_run_says_what_ended_it(tmp_path: Path, error: BaseException, status: str, said: str | None) -> None:
    failing(tmp_path / "run", error)
    info = load_run(tmp_path / "run").info
    assert (info.status, info.error) == (status, said)
    with added_to(tmp_path / "run"):
        pass
    assert (load_run(tmp_path / "run").info.status, load_run(tmp_path / "run").info.error) == ("finished", None)


@pytest.mark.parametrize("kind", ["scored", "trained"])
def test_a_finished_run_stays_finished_when_something_fails_to_be_added(tmp_path: Path, kind: str) -> None:
    RunWriter(tmp_path, kind=kind).finish()
    ended = load_run(tmp_path).info.ended
    failing(tmp_path, ValueError("no chat template"))
    info = load_run(tmp_path).info
    assert (info.kind, info.status, info.error, info.ended) == (kind, "finished", None, ended)
