"""Real logs, through the importers (skipped where the data are absent)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis.checks import CheckContext, run_checks
from dpo_diag.importers import import_path
from dpo_diag.records import load_run


def look(source: Path | list[Path], out: Path) -> dict[str, dict[str, Any]]:
    import_path(source, out)
    return {f["code"]: f for f in run_checks(CheckContext.from_run(load_run(out)))}


def log(shared_data: Path, pattern: str) -> Path:
    found = sorted((shared_data / "logs").glob(pattern))
    if not found:
        pytest.skip(f"no {pattern}")
    return found[0]


def speaking(findings: dict[str, dict[str, Any]]) -> set[str]:
    return {c for c, f in findings.items() if f["outcome"] == "speaks"}


def test_a_healthy_run_with_a_dip_and_nan_rows(shared_data: Path, tmp_path: Path) -> None:
    findings = look(log(shared_data, "ccccai239*"), tmp_path / "r")
    assert speaking(findings) == {"DVG011"}
    assert {390, 430, 680} <= set(findings["DVG011"]["evidence"]["steps_with_finite_loss"])
    assert findings["DVG001"]["outcome"] == "silent"
    assert findings["DVG020"]["outcome"] == findings["DVG022"]["outcome"] == "silent"


def test_chosen_falls_under_batch_noise(shared_data: Path, tmp_path: Path) -> None:
    findings = look(log(shared_data, "*nobars.log"), tmp_path / "r")
    assert speaking(findings) == {"DVG001"}
    change = findings["DVG001"]["evidence"]["chosen_change"]
    assert change["value"] == pytest.approx(-1.4, abs=0.06) and change["high"] < -1.2
    assert findings["DVG012"]["outcome"] == "silent"


def test_the_dead_run(shared_data: Path, tmp_path: Path) -> None:
    findings = look(log(shared_data, "DehaoDai*"), tmp_path / "r")
    assert speaking(findings) == {"DVG007", "DVG008", "DVG009"}
    assert findings["DVG008"]["evidence"]["rows_without_gradient"] == 20


def test_the_run_that_does_not_learn(shared_data: Path, tmp_path: Path) -> None:
    findings = look(log(shared_data, "hykun1989*"), tmp_path / "r")
    assert speaking(findings) == {"DVG009"}
    assert findings["DVG001"]["outcome"] == "not_applicable"


def test_ren_and_sutherland(shared_data: Path, tmp_path: Path) -> None:
    """Chosen falls from evaluation 25 to 49, and from 0 to 49 the sign of its perplexity is the aggregator's."""
    folder = tmp_path / "ren"
    shutil.copytree(shared_data / "ren_pythia410m_dpo", folder)
    shutil.copy(shared_data / "learningdyn_formal_prob_train.jsonl", folder)
    findings = look(folder, tmp_path / "r")
    assert {"DVG001", "DVG002", "DVG003"} <= speaking(findings)
    assert findings["DVG001"]["evidence"]["steps"] == [25, 49]
    assert findings["DVG001"]["evidence"]["chosen_change"]["high"] < 0
    assert findings["DVG003"]["evidence"]["from"]["ppl_seq_mean"] == pytest.approx(2.344, abs=1e-3)
    assert findings["DVG003"]["evidence"]["to"]["ppl_seq_mean"] == pytest.approx(2.736, abs=1e-3)
    assert findings["DVG003"]["evidence"]["to"]["ppl_token"] == pytest.approx(1.739, abs=1e-3)
    assert findings["DVG002"]["evidence"]["relative_rise_of_rejected_nll"] == pytest.approx(0.63, abs=0.01)
