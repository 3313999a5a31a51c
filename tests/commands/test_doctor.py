"""`dpo-diag doctor`: a whole run passes, every kind of damage is named, and torch is never imported to say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.commands import diag, doctor
from dpo_diag.records import RunWriter
from dpo_diag.records.finding import FAIL, OK, WARN
from dpo_diag.records.health import check_run, missing_steps
from dpo_diag.records.run_lock import OWNER


def _pairs(step: int, ids: tuple[str, ...] = ("a", "b"), role: str = "policy") -> list[dict[str, Any]]:
    return [
        {"step": step, "split": "eval", "role": role, "pair_id": i, "side": side, "sum_logp": -1.0, "n_tokens": 1}
        for i in ids
        for side in ("chosen", "rejected")
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A trained run of 4 steps, logged at each, evaluated at 0, 1, 2, 3, 4; two pairs; a reference."""
    writer = RunWriter(tmp_path / "run")
    writer.write("pairs", _pairs(0, role="ref"), "eval_ref")
    for step in range(5):
        writer.write("pairs", _pairs(step), "eval")
        if step:
            writer.write("history", [{"step": step, "split": "train", "name": "loss", "value": 0.5}], "train")
    writer.finish()
    (tmp_path / "run" / ".hydra").mkdir()
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("{}")
    return tmp_path / "run"


def _damage(run: Path) -> list[tuple[str, str, str]]:
    return [(f.name, f.outcome, f.found) for f in check_run(run) if f.outcome != OK]


def test_a_whole_run_has_nothing_to_mend(run: Path) -> None:
    """5 evaluations of 4 rows and 4 reference rows: 24 rows in 6 files; 4 history rows in 4 files."""
    assert _damage(run) == []
    found = {f.name: f.found for f in check_run(run)}
    assert found["pairs"] == "24 rows in 6 files, steps 0 to 4"
    assert found["history"] == "4 rows in 4 files, steps 1 to 4"
    # Who held the folder is no record: a fresh run's file of it counted as "changed by hand".
    (run / OWNER).write_text("{}\n", encoding="utf-8")
    assert {f.name: f.found for f in check_run(run)}["checksums"] == found["checksums"]


def test_a_broken_file_a_gap_a_leftover_a_stranger(run: Path) -> None:
    """Step 2's pairs are cut in half, so step 2 is also missing from the series; step 3's history file is gone."""
    broken = run / "pairs" / "00000002-00000002.eval.r0.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    (run / "history" / "00000003-00000003.train.r0.parquet").unlink()
    (run / "pairs" / ".x.parquet.12.tmp").write_text("")
    (run / "pairs" / "notes.txt").write_text("")
    damage = _damage(run)
    assert [(name, outcome) for name, outcome, _ in damage] == [
        ("pairs", FAIL), ("pairs", WARN), ("pairs", FAIL), ("leftovers", WARN),
    ]  # fmt: skip
    assert "cannot be read" in damage[0][2] and broken.name in damage[0][2]
    assert damage[1][2] == "files that are never read: notes.txt"
    assert damage[2][2] == "split eval: 1 steps missing, 2"
    assert damage[3][2] == "1 temporary files: pairs/.x.parquet.12.tmp"


def test_a_gap_in_the_log(run: Path) -> None:
    writer = RunWriter(run, resume_step=4)
    for step in (5, 6, 8):
        writer.write("history", [{"step": step, "split": "train", "name": "loss", "value": 0.5}], "train")
    writer.finish()
    assert _damage(run) == [("history", FAIL, "split train: 1 steps missing, 7")]


def test_an_evaluation_that_lacks_pairs_and_a_reference_that_lacks_rows(run: Path) -> None:
    writer = RunWriter(run, resume_step=4)
    writer.write("pairs", _pairs(3, ids=("a",)), "eval")
    writer.write("pairs", _pairs(0, ids=("a",), role="ref"), "eval_ref")
    writer.finish()
    assert _damage(run) == [
        ("pairs", FAIL, "split eval: incomplete at steps 3 (2 of 4 rows)"),
        ("pairs", WARN, "2 responses of fixed sets have no reference row"),
    ]


def test_rows_that_stand_twice_and_names_that_lie(run: Path) -> None:
    first = run / "pairs" / "00000001-00000001.eval.r0.parquet"
    (run / "pairs" / "00000001-00000001.eval.r1.parquet").write_bytes(first.read_bytes())
    first.rename(run / "pairs" / "00000001-00000009.eval.r0.parquet")
    damage = _damage(run)
    assert ("pairs", FAIL, "00000001-00000009.eval.r0.parquet holds steps 1 to 1") in damage
    assert ("pairs", FAIL, "4 duplicate rows") in damage


@pytest.mark.parametrize(
    ("status", "age_hours", "outcome", "found"),
    [
        ("running", 0, WARN, "running, last written"),
        ("running", 3, FAIL, "nothing was written for 3.0 h: killed?"),
        ("failed", 0, FAIL, "failed"),
        ("interrupted", 0, FAIL, "interrupted"),
    ],
)
def test_how_it_ended(run: Path, status: str, age_hours: float, outcome: str, found: str) -> None:
    writer = RunWriter(run, resume_step=9)
    writer.finish(status)
    for path in run.rglob("*.parquet"):
        then = path.stat().st_mtime - 3600 * age_hours
        os.utime(path, (then, then))
    ((name, got, text),) = _damage(run)
    assert (name, got) == ("status", outcome) and found in text


def test_a_pairs_texts_may_be_written_by_each_process(run: Path) -> None:
    """In another epoch another process of several has it; the same process writes it once."""
    row = {"split": "train", "pair_id": "a", "prompt": "p", "chosen": "c", "rejected": "r"}
    for rank in (0, 1):
        RunWriter(run, rank=rank, resume_step=9).write("texts", [row], "train")
    RunWriter(run, resume_step=9).finish()
    assert _damage(run) == []
    (part,) = (run / "texts").glob("*.r1.parquet")
    part.with_name(part.name.replace("train", "twice")).write_bytes(part.read_bytes())
    assert _damage(run) == [("texts", FAIL, "1 duplicate rows")]


def test_what_is_no_run(tmp_path: Path) -> None:
    assert [f.outcome for f in check_run(tmp_path / "absent")] == [FAIL]
    RunWriter(tmp_path / "empty").finish()
    assert ("records", FAIL, "the run holds no records") in _damage(tmp_path / "empty")
    (tmp_path / "empty" / "run.json").write_text("{half")
    assert "run.json cannot be read" in check_run(tmp_path / "empty")[0].found


def test_an_import_s_gaps_only_warn(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "i", kind="imported")
    rows = [{"step": s, "split": "train", "name": "loss", "value": 1.0} for s in (10, 20, 30, 50)]
    writer.write("history", rows)
    writer.finish()
    assert _damage(tmp_path / "i") == [("history", WARN, "split train: 1 steps missing, 40")]


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([], []),
        ([0], []),
        ([0, 1, 2, 3], []),
        ([0, 10, 20, 30, 37], []),
        ([0, 10, 20, 40, 45], [30]),
        ([1, 2, 3, 7, 8], [4, 5, 6]),
        ([0, 2, 3, 4, 5], [1]),
        ([0, 5, 100], []),
        ([1, 3, 10, 14, 30], []),
    ],
)
def test_missing_steps(steps: list[int], missing: list[int]) -> None:
    assert [step for gap in missing_steps(steps) for step in gap] == missing


@given(every=st.integers(1, 50), n=st.integers(8, 30), lost=st.integers(3, 6))
def test_one_lost_step_is_found(every: int, n: int, lost: int) -> None:
    steps = [every * i for i in range(n)]
    assert missing_steps([s for s in steps if s != every * lost]) == [range(every * lost, every * lost + every, every)]
    assert missing_steps(steps) == []


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main(["doctor", str(run), "--quick"]) == 0
    assert "0 failed" in capsys.readouterr().out
    (run / "history" / "00000003-00000003.train.r0.parquet").write_bytes(b"")
    assert diag.main(["doctor", str(run), "--quick", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False and document["run"]["path"] == str(run)
    assert [f["name"] for f in document["run"]["findings"] if f["outcome"] == FAIL] == ["history"]
    assert {"python", "packages", "torch", "conf", "wandb", "disk"} <= {f["name"] for f in document["machine"]}


def test_packages_against_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=1",
        "pandas>=999",
        "no-such-package-xyz>=1",
        "ruff<0.0.1; extra == 'dev'",
        "absent-x; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor, "requirements", lambda: wanted)
    findings = {f.name: (f.outcome, f.found) for f in doctor._packages()}
    assert findings["packages"] == (OK, "1 in their ranges; extras not installed: absent-x")
    assert findings["pandas"][0] == FAIL and findings["pandas"][1].endswith("wanted >=999")
    assert findings["no-such-package-xyz"] == (FAIL, "absent, wanted >=1")
    assert findings["ruff"][0] == WARN


def test_requirements_come_from_pyproject_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise doctor.metadata.PackageNotFoundError(name)

    installed = {r.split(">")[0].split("<")[0] for r in doctor.requirements()}
    monkeypatch.setattr(doctor.metadata, "requires", missing)
    listed = doctor.requirements()
    assert any(r.startswith("torch") for r in listed) and any("extra == 'gguf'" in r for r in listed)
    assert {"trl", "torch", "pandas"} <= {r.split(">")[0] for r in listed} & installed


def test_the_key_is_never_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 7)
    assert "a key is set" in doctor._wandb().found and "s3cret" not in doctor._wandb().found
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    monkeypatch.setenv("WANDB_MODE", "online")
    assert doctor._wandb().outcome == WARN


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH", "raise ImportError('libtorch.so is gone')")
    assert (doctor._torch().outcome, doctor._torch().found) == (
        FAIL, "cannot be imported: ImportError: libtorch.so is gone",
    )  # fmt: skip


def test_torch_stays_out_of_the_doctor_s_own_process() -> None:
    code = (
        "import sys; from dpo_diag.commands import diag; diag.main(['doctor', '--quick']);"
        "sys.exit(','.join(m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
