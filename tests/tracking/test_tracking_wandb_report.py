"""The W&B report: built without a network, saved to a stand-in server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standin_server import ENTITY, StandIn

from dpo_diag.errors import DiagError
from dpo_diag.report.wandb_report import build_report, save_report, write_spec

EXPLANATION: dict[str, Any] = {
    "verdict": {"title": "the loss fell", "harm": "harmful", "text": "accuracy fell \u202e too"},
    "checks": [
        {"code": "DVG001", "title": "Displacement", "outcome": "speaks", "reason": "93 % fell", "severity": "warning"},
        {"code": "DVG002", "title": "Dead run", "outcome": "silent", "reason": "no", "severity": "error"},
    ],
}


@pytest.fixture
def workspaces() -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    try:
        build_report("p", "e")
    except DiagError as error:
        pytest.skip(str(error))


def metrics(spec: dict[str, Any]) -> list[list[str]]:
    grid = next(b for b in spec["blocks"] if b["type"] == "panel-grid")
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    return [panel["config"]["metrics"] for panel in panels]


@pytest.mark.usefixtures("workspaces")
def test_the_spec_is_built_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens: a request would fail
    report = build_report("p", "e", explanation=EXPLANATION, split="eval_hard", scores=["held_out/score/accuracy"])
    spec = json.loads(write_spec(report, tmp_path / "spec.json").read_text())
    text = json.dumps(spec)
    assert "harmful" not in text
    assert "Harmful. accuracy fell <U+202E> too" in text
    assert "Displacement (DVG001): 93 % fell" in text
    assert "DVG002" not in text
    assert metrics(spec)[:2] == [
        ["eval_hard/loss"],
        ["eval_hard/ppl_seq_mean/chosen", "eval_hard/ppl_seq_mean/rejected"],
    ]
    assert metrics(spec)[-1] == ["held_out/score/accuracy"]
    assert text.count('"train/global_step"') >= len(metrics(spec))


SAVE = """
import json, sys
from dpo_diag.report.wandb_report import build_report, save_report
explanation = json.loads(sys.argv[1])
print(save_report(build_report("p", "standin", title="Mine", explanation=explanation, group="sweep-7")))
"""


@pytest.mark.usefixtures("workspaces")
def test_the_report_reaches_the_server() -> None:
    with StandIn() as server:
        environment = {**os.environ, **server.environment()}
        command = [sys.executable, "-c", SAVE, json.dumps(EXPLANATION)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{server.url}/{ENTITY}/p/reports/Mine")
    assert len(server.views) == 1
    saved = server.views[0]
    assert saved["displayName"] == "Mine"
    assert metrics(saved["spec"])[0] == ["eval/loss"]
    assert "sweep-7" in json.dumps(saved["spec"])


def test_a_report_that_cannot_be_saved_is_one_line() -> None:
    class Refused:
        url = ""

        def save(self, draft: bool) -> None:
            raise PermissionError("entity not\nyours")

    with pytest.raises(DiagError, match="the W&B report was not saved; got entity not yours; hint: check wandb login"):
        save_report(Refused())  # type: ignore[arg-type]


def test_the_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(
        DiagError, match=r"needs wandb_workspaces, which is not installed; hint: pip install .*\[wandb-report\]"
    ):
        build_report("p", "e")
