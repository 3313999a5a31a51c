"""The commands that draw a run or send it to a tracker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.commands.diag import main


def test_report_prints_its_path_alone_on_the_last_line(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "r.html"
    assert main(["report", str(made_run), "--out", str(target), "--open-less"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.stat().st_size > 100_000


def test_track_refuses_a_report_without_an_entity(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["track", str(made_run), "--report"]) == 2
    assert "a W&B report needs an entity; hint: add --entity TEAM" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_track_notes_where_it_went_and_touches_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    writer = RunWriter(tmp_path / "r")
    writer.write("history", [{"step": 9, "split": "eval", "name": "loss", "value": 0.5, "weight": 8}])
    writer.finish()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    meta = load_run(tmp_path / "r").meta
    assert main(["track", str(tmp_path / "r"), "--name", "mine", "--project", "p"]) == 0
    where = json.loads(capsys.readouterr().out)
    assert (where["kind"], where["mode"], where["name"]) == ("wandb", "offline", "mine")
    assert load_run(tmp_path / "r").meta == {**meta, "tracking": where}
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before
