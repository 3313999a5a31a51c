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

from dpo_diag.commands.diag import main
from dpo_diag.errors import DiagError
from dpo_diag.report.wandb_report import Told, build_report, save_report, spec_of

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


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all grids, in their order."""
    grids = [b["metadata"]["panelBankSectionConfig"]["panels"] for b in spec["blocks"] if b["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid]


def lines_of(spec: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """Title -> (x, y) of the line plots."""
    configs = [p["config"] for p in panels(spec) if "metrics" in p["config"]]
    return {c["chartTitle"]: (c["xAxis"], c["metrics"]) for c in configs}


@pytest.mark.usefixtures("workspaces")
def test_the_spec_is_built_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens: a request would fail
    told = Told("mine", "abc", EXPLANATION)
    spec = spec_of(build_report("p", runs=[told], split="eval_hard", scores=["held_out/score/accuracy"]))
    text = json.dumps(spec)
    assert "harmful" not in text
    assert "Harmful. accuracy fell <U+202E> too" in text
    assert "Displacement (DVG001): 93 % fell" in text
    assert "DVG002" not in text
    plots = lines_of(spec)
    over_the_loss = [y for x, y in plots.values() if x == "eval_hard/loss"]
    assert [y[0] for y in over_the_loss] == [
        f"eval_hard/{name}/chosen" for name in ("ce", "ppl_token", "ppl_seq_mean", "ppl_seq_geomean")
    ]
    assert over_the_loss[0][1] == "eval_hard/ce/rejected"
    quadrants = ["eval_hard/pairs/both_fell", "eval_hard/pairs/chosen_fell"]
    assert plots["Pairs whose answers fell, by quadrant"] == ("train/global_step", quadrants)
    assert plots["Task scores"][1] == ["held_out/score/accuracy"]
    assert '"abc"' in text  # the run set is this run
    assert not [p for p in panels(spec) if p["viewType"] == "Run Comparer"]  # one run has none to be compared with


@pytest.mark.usefixtures("workspaces")
def test_several_runs_are_a_sweep() -> None:
    """Parallel coordinates from what was set to loss, perplexity and score; the comparer; the tables."""
    told = [Told("a", "1", EXPLANATION), Told("b", "2")]
    spec = spec_of(build_report("p", "e", runs=told, scores=["held_out/score/accuracy"], knobs=["loss.beta"]))
    (coordinates,) = [p for p in panels(spec) if p["viewType"] == "Parallel Coordinates Plot"]
    accessors = json.dumps(coordinates["config"]["columns"])
    for name in ("config:loss.value.beta", "eval/loss", "eval/ppl_seq_mean/chosen", "held_out/score/accuracy"):
        assert name in accessors
    assert [p["viewType"] for p in panels(spec)].count("Run Comparer") == 1
    text = json.dumps(spec)
    assert "a: the loss fell" in text
    for table in ("outputs", "pairs", "checks"):
        assert f'"{table}"' in text


@pytest.mark.usefixtures("workspaces")
def test_the_command_prints_the_spec_of_tracked_runs(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["wandb-report", str(run_folder), "--json"]) == 0
    told = capsys.readouterr()
    assert f"not in W&B: {run_folder}; next: dpo-diag track {run_folder} --to wandb" in told.err
    assert lines_of(json.loads(told.out))["Task scores"][1] == ["held_out/score/accuracy"]
    assert main(["wandb-report", str(run_folder), "--save"]) == 2
    assert "a report is saved to an entity; hint: add --entity TEAM" in capsys.readouterr().err
    assert main(["wandb-report", str(run_folder)]) == 2
    assert "expected --save, or --json" in capsys.readouterr().err


SAVE = """
import json, sys
from dpo_diag.report.wandb_report import Told, build_report, save_report
runs = [Told("mine", "abc", json.loads(sys.argv[1]))]
print(save_report(build_report("p", "standin", title="Mine", runs=runs, group="sweep-7")))
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
    assert "eval/loss" in json.dumps(saved["spec"])
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
