"""The sweep's tables, and the command that prints them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dpo_diag import RunWriter
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.errors import DiagError


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
    assert [(Path(f["run"]).name, f["why"]) for f in collected.failed] == [
        ("4", "status interrupted"), ("5", "no run.json: it ended before the first record"),
    ]  # fmt: skip


def test_the_command_prints_one_json_document(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", f"{four_runs}/*", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (len(document["runs"]), len(document["groups"]), len(document["failed"])) == (4, 2, 2)
    assert document["runs"][0]["rejected_ppl_seq_mean"] is None


def test_the_table_for_people_and_for_spreadsheets(four_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = four_runs / "out" / "t.csv"
    assert main(["sweep", f"{four_runs}/*", "--csv", str(file)]) == 0
    out = capsys.readouterr().out
    assert "the same in all: experiment=sql" in out
    assert "0.400 [0.309, 0.498] n=100" in out
    assert "0.5000 [0.4000, 0.6000] n=200" in out
    assert "failed or unfinished: 2" in out
    assert len(list(csv.DictReader(file.read_text().splitlines()))) == 4


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
