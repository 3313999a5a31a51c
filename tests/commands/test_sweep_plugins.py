"""Hydra's launchers and its Optuna sweeper, where they are installed: each is an extra of its own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dpo_diag import RunWriter, extras, load_run
from dpo_diag.commands.diag import main
from dpo_diag.commands.hydra_app import run_app
from dpo_diag.diagnosis.objective import objectives, values
from dpo_diag.errors import DiagError
from dpo_diag.extras import PLUGINS, has_plugin, require_plugin

LAUNCHERS = [*(override for override in PLUGINS if override.startswith("hydra/launcher") and "slurm" not in override)]
optuna = pytest.mark.skipif(not has_plugin("hydra_optuna_sweeper"), reason="the extra optuna is not installed")


def test_an_absent_plugin_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_diag.extras.has_plugin", lambda module: False)
    with pytest.raises(DiagError, match=r"hydra/launcher=submitit_slurm needs hydra-submitit-launcher.*\[submitit\]"):
        require_plugin("hydra/launcher=submitit_slurm")
    require_plugin("hydra/launcher=basic")


def searched(cfg: DictConfig) -> float | tuple[float, ...]:
    """A job without a model, whose loss is least at beta = 1; negative betas meet a bug."""
    if cfg.loss.beta < 0:
        raise RuntimeError("no such beta")
    folder = Path(HydraConfig.get().runtime.output_dir)
    writer = RunWriter(folder)
    writer.write("history", [
        {"step": 4, "split": "eval", "name": name, "value": value, "weight": 2}
        for name, value in (("loss", (cfg.loss.beta - 1) ** 2), ("rewards/accuracies", 0.5))
    ])  # fmt: skip
    writer.update(splits={"eval": {"role": "held_out"}})
    writer.finish()
    return values(objectives(cfg.sweep.objective, cfg.sweep.direction), load_run(folder))


def search(tmp_path: Path, *overrides: str) -> int:
    arguments = ["-m", f"output_root={tmp_path}", "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=1", *overrides]
    return run_app("dpo-train", "config", searched, arguments)


@optuna
@pytest.mark.filterwarnings("ignore")
def test_optuna_keeps_its_trials_and_a_failed_one_does_not_end_the_search(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four trials in the sweep's own sqlite file, told at the end; going on adds what is missing to the same study."""
    wanted = ["sweep.objective=loss", "loss.beta=interval(-1,3)", "hydra.sweeper.n_trials=4"]
    status = search(tmp_path, *wanted)
    (folder,) = (tmp_path / "run").iterdir()
    states = [json.loads(f.read_text())["status"] for f in sorted(folder.glob("*/.hydra/job.json"))]
    assert len(states) == 4 and set(states) <= {"completed", "failed"} and "completed" in states
    assert status == (1 if "failed" in states else 0)
    with sqlite3.connect(folder / "optuna.db") as study:
        assert [row[0] for row in study.execute("select state from trials")].count("COMPLETE") == states.count(
            "completed"
        )
        assert study.execute("select direction from study_directions").fetchall() == [("MINIMIZE",)]
    assert f"{states.count('completed')} completed" in capfd.readouterr().err or status == 0
    assert main(["sweep", str(folder), "--json", "--no-verdicts"]) == 0
    assert len(json.loads(capfd.readouterr().out)["runs"]) == 4


@optuna
@pytest.mark.filterwarnings("ignore")
def test_optuna_with_two_objectives_gives_a_front(tmp_path: Path) -> None:
    names = "sweep.objective=[loss,rewards/accuracies]"
    assert search(tmp_path, names, "loss.beta=interval(0,3)", "hydra.sweeper.n_trials=3") == 0
    (folder,) = (tmp_path / "run").iterdir()
    with sqlite3.connect(folder / "optuna.db") as study:
        assert study.execute("select direction from study_directions order by objective").fetchall() == [
            ("MINIMIZE",), ("MAXIMIZE",),
        ]  # fmt: skip
    assert "solutions" in (folder / "optimization_results.yaml").read_text()


@optuna
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objective", [[], ["sweep.objective=los"]])
def test_a_search_without_a_known_objective_begins_nothing(
    tmp_path: Path, objective: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path / "runs", *objective, "loss.beta=interval(0,3)") == 2
    assert not (tmp_path / "runs").exists()
    assert "sweep.objective" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_records_of_basic(
    launcher: str, tmp_path: Path, tiny_folder: Path, pair_file: Path
) -> None:
    """Four jobs, two betas and two seeds: the same pairs with the same sums at the same steps."""
    plugin, extra = PLUGINS[launcher]
    if not has_plugin(plugin):
        pytest.skip(f"the extra {extra} is not installed")
    found = {}
    for name, of in (("basic", []), ("other", [launcher])):
        command = [
            sys.executable, "-m", "dpo_diag.commands.train", "-m", "model=hub", f"model.name={tiny_folder}",
            "data=jsonl", f"data.path={pair_file}", "data.max_bad_share=0.1", f"output_root={tmp_path}", f"name={name}",
            "explain=false", "report=false", "trainer.max_steps=2", "trainer.eval_steps=2", "trainer.batch_size=4",
            "model.device=cpu", "prompts=none", "loss.beta=0.1,2", "seed=0,1", *of,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = [load_run(f).pairs for f in sorted((tmp_path / name).glob("*/[0-3]"))]
    assert len(found["other"]) == 4
    for one, two in zip(found["basic"], found["other"], strict=True):
        pd.testing.assert_frame_equal(one, two, rtol=1e-6)


def test_a_search_and_mlflow_are_told_apart_by_their_sqlalchemy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sweeper's 1.4 both together are refused, each alone is not; with 2 (another sweeper's) nothing is."""
    both = ["hydra/sweeper=optuna", "tracking.kind=[wandb,mlflow]"]
    monkeypatch.setattr(extras, "is_installed", lambda package: True)
    for installed, asked, refused in (("1.4.54", both, True), ("1.4.54", both[1:], False), ("2.0.1", both, False)):
        monkeypatch.setattr(extras, "version", lambda package, found=installed: found)
        if refused:
            with pytest.raises(DiagError, match=r"needs SQLAlchemy 1\.4 and MLflow needs 2.*track RUN --to mlflow"):
                extras.refuse_together(asked)
        else:
            extras.refuse_together(asked)
