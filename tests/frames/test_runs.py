"""Several runs beside each other: what was set in each, and their frames stacked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dpo_diag import DiagError, Runs, RunWriter, load_runs
from tests.diagnosis.builders import build_run

SUMS = {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Two runs: beta 0.1 against 0.5, seed 1 against 2, an optimizer that one of them names, and a shared override."""
    said = {"0": "[loss.beta=0.1, seed=1, +trainer.warmup=1e-3, name=x]", "1": "[loss.beta=0.5, seed=2, name=x]"}
    for job, (name, overrides) in enumerate(said.items()):
        folder = tmp_path / name
        build_run(
            folder, SUMS, loss={"types": ["sigmoid"], "beta": (0.1, 0.5)[job]},
            facts={"seed": job + 1, "training": {"learning_rate": 1e-4}},
            history=[{"step": 7, "split": "eval", "name": "loss", "value": 0.5}],
            outputs=[{"step": 7, "model": "policy", "prompt_id": "q", "sample": 0, "text": "t", "decoding_hash": "h"}],
        )  # fmt: skip
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(overrides, encoding="utf-8")
    return load_runs(str(tmp_path / "*"))


def test_settings_have_types_and_say_nothing_twice(runs: Runs) -> None:
    """The overrides of beta and seed repeat what run.json says, and `name` is everywhere the same."""
    settings = runs.settings
    assert list(settings.columns) == ["run", "kind", "status", "loss_type", "beta", "lr", "seed", "trainer.warmup"]
    assert settings["beta"].tolist() == [0.1, 0.5]
    assert settings["seed"].tolist() == [1, 2]
    assert settings["trainer.warmup"].fillna(0).tolist() == [0.001, 0.0]
    expected = ["category", "category", "category", "category", "float64", "float64", "Int64", "float64"]
    assert [str(dtype) for dtype in settings.dtypes] == expected


def test_frames_are_stacked_with_the_settings(runs: Runs) -> None:
    wide = runs.pairs_wide(steps=[7], columns=["pair_id", "margin", "loss"])
    assert wide[["beta", "margin"]].round(12).to_numpy().tolist() == [[0.1, 0.4], [0.5, 2.0]]
    assert isinstance(wide["pair_id"].dtype, pd.CategoricalDtype)
    assert isinstance(wide["run"].dtype, pd.CategoricalDtype)
    assert runs.metrics.groupby("beta")["loss"].first().tolist() == [0.5, 0.5]
    assert runs.outputs["run_seed"].tolist() == [1, 2]  # `seed` there is the sample's
    for table in ("history", "pairs", "tokens", "texts", "alerts"):
        frame = getattr(runs, table)
        assert {"run", "loss_type", "beta", "lr", "seed"} <= set(frame.columns)
        assert len(frame) == sum(len(getattr(run, table)) for run in runs)


def test_runs_of_which_nothing_is_known(tmp_path: Path) -> None:
    build_run(tmp_path / "a", SUMS, loss=None)
    settings = load_runs(str(tmp_path / "a")).settings
    assert settings[["beta", "lr", "seed", "loss_type"]].isna().all(axis=None)
    assert [str(settings[c].dtype) for c in ("beta", "lr", "seed")] == ["float64", "float64", "Int64"]
    with pytest.raises(DiagError, match="no run found"):
        load_runs(str(tmp_path / "nothing*"))


def test_a_log_beside_runs_with_pairs_adds_no_row_of_them(tmp_path: Path) -> None:
    """A run of means only has no pair, and so no category that pairs could share."""
    build_run(tmp_path / "a", SUMS)
    RunWriter(tmp_path / "b", kind="imported").finish()
    runs = load_runs(str(tmp_path / "*"))
    wide = runs.pairs_wide()
    assert len(wide) == len(load_runs(str(tmp_path / "a")).pairs_wide()) > 0
    assert isinstance(wide["pair_id"].dtype, pd.CategoricalDtype) and set(wide["run"]) == {str(tmp_path / "a")}
