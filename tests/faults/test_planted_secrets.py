"""Secrets planted in every door of a training, and all that it wrote searched for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_diag.extras import is_installed
from tests.commands.conftest import pair_file, tiny_folder  # noqa: F401

PLANT = "PLANTEDs3cret"
KEYS = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DPO_DIAG_JUDGE_API_KEY")


def _found(folder: Path) -> list[str]:
    """Files below a folder that hold a plant; no tracker's store compresses."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and PLANT.encode() in p.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_planted_secret_is_written(
    tiny_folder: Path,  # noqa: F811
    pair_file: Path,  # noqa: F811
    tmp_path: Path,
    fault: Callable[..., None],
) -> None:
    """A training and a multirun with a token in an override, a password in the git remote, keys in the environment,
    and trackers that write down how they were called; the folder, the checkpoints and what was printed hold none."""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=home, check=True)
    remote = f"https://user:{PLANT}6@example.org/x.git"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=home, check=True)
    common = [
        "model=hub", f"model.name={tiny_folder}", "data=jsonl", f"data.path={pair_file}", "trainer.max_steps=2",
        "trainer.batch_size=4", "trainer.max_length=64", "data.eval_share=0.3", "data.max_bad_share=0.1",
        "model.device=cpu", "trainer.save_steps=1", f"+trainer.args.hub_token={PLANT}1", f"output_root={home / 'runs'}",
        "tracking=wandb", "tracking.kind=[wandb,trackio,tensorboard]",
    ]  # fmt: skip
    environment = {**os.environ, "WANDB_MODE": "offline", "HOME": str(home), "TRACKIO_DIR": str(home / "trackio"),
                   **{key: f"{PLANT}{i}" for i, key in enumerate(KEYS)}}  # fmt: skip
    tried, lost = 0, []
    for more in ([], ["-m", "seed=0,1"], ["data.path=https://user:PLANTEDs3cret7@127.0.0.1:9/x.jsonl"]):
        flags = [word for word in more if word.startswith("-")]
        command = [sys.executable, "-m", "dpo_diag.commands.train", *flags, *common, *more[len(flags) :]]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)
        assert (done.returncode == 0) == (not more or "-m" in more), done.stderr
        lost += [f"printed: {line}" for line in (done.stderr + done.stdout).splitlines() if PLANT in line]
        tried += 1
    (home / ".git" / "config").unlink()
    lost += _found(home)
    assert lost == []
    assert len(list(home.rglob("training_args.bin"))) >= 3
    noted = [path for path in home.rglob("*.wandb") if b"hub_token=[redacted]" in path.read_bytes()]
    assert len(noted) == 3  # W&B noted how it was called
    fault("a secret planted in overrides, URLs, environment and the git remote", tried=tried * 8, lost=len(lost))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("kind", "packages"),
    [("mlflow", ["mlflow", "alembic", "sqlalchemy"]), ("swanlab", ["swanlab"])],
    ids=["mlflow", "swanlab"],
)
def test_no_planted_secret_reaches_another_tracker(
    kind: str,
    packages: list[str],
    tiny_folder: Path,  # noqa: F811
    pair_file: Path,  # noqa: F811
    tmp_path: Path,
    fault: Callable[..., None],
) -> None:
    """Its store holds the run's configuration and values, and none of the plants."""
    if not all(map(is_installed, packages)):  # not imported here: what they warn of would be an error of this process
        pytest.skip(f"pip install 'dpo-diag[{kind}]'")
    common = [
        "model=hub", f"model.name={tiny_folder}", "data=jsonl", f"data.path={pair_file}", "trainer.max_steps=2",
        "trainer.batch_size=4", "trainer.max_length=64", "data.eval_share=0.3", "data.max_bad_share=0.1",
        "model.device=cpu", f"+trainer.args.hub_token={PLANT}1", f"output_root={tmp_path / 'runs'}",
        f"tracking={kind}", f"tracking.tags=['hub_token={PLANT}2']",
    ]  # fmt: skip
    environment = {
        **os.environ, "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "MLFLOW_TRACKING_PASSWORD": f"{PLANT}8", "SWANLAB_API_KEY": f"{PLANT}9",
        **{key: f"{PLANT}{i}" for i, key in enumerate(KEYS)},
    }  # fmt: skip
    command = [sys.executable, "-m", "dpo_diag.commands.train", *common]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, "tracking failed" in done.stderr) == (0, False), done.stderr
    lost = [f"printed: {line}" for line in (done.stderr + done.stdout).splitlines() if PLANT in line] + _found(tmp_path)
    assert lost == []
    stores = [p for p in tmp_path.rglob("*") if p.suffix in (".db", ".swanlab")]
    assert any(b"rewards/margins" in p.read_bytes() and b"hub_token" in p.read_bytes() for p in stores), stores
    fault("a secret planted in overrides, URLs, environment and the git remote", tried=len(KEYS) + 4, lost=len(lost))
