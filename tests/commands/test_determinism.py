"""The same configuration, seed, machine and thread count give the same run, to the bit (docs/reliability.md)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.train import job
from dpo_diag.records import load_run

from .test_train_command import own  # noqa: F401  (a fixture)

TABLES = ("history", "pairs", "tokens", "outputs")
CLOCK = "runtime|per_second|seconds|time|speed|memory"  # names in history that measure the machine


def _trained(overrides: list[str], name: str, capfd: pytest.CaptureFixture[str]) -> Path:
    settings = [*overrides, f"name={name}", "trainer.save_steps=4", "report=false"]
    assert run_app("dpo-train", "config", job, settings) == 0
    return Path(capfd.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    own: list[str],  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every table, and the weights of the last checkpoint; times and speeds are a run's own."""
    one, again = (_trained([*own, "seed=5"], name, capfd) for name in ("one", "again"))
    other = _trained([*own, "seed=6"], "other", capfd)
    runs = [load_run(folder) for folder in (one, again, other)]
    for table in TABLES:
        frames = [getattr(run, table).drop(columns="run", errors="ignore") for run in runs]
        if table == "history":
            frames = [frame[~frame["name"].str.contains(CLOCK)].reset_index(drop=True) for frame in frames]
        assert len(frames[0]) > 0
        pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    files = [next((folder / "checkpoints").glob("checkpoint-4/*.safetensors")) for folder in (one, again, other)]
    weights = [file.read_bytes() for file in files]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
