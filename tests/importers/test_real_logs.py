"""Real public logs and arrays, which the project does not ship: imported and explained to what is known of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dpo_diag import Run
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records import metrics
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value


def one(shared_data: Path, start: str) -> Path:
    return next((shared_data / "logs").glob(f"{start}*"))


def explained(run: Run) -> dict[str, object]:
    from dpo_diag.diagnosis import explain

    return dict(explain(run)["verdict"])


def test_a_healthy_run_of_old_trl(shared_data: Path, imported: Importing) -> None:
    """TRL 0.7.0: 100 training and 10 evaluation rows; the reference is constant at -183.85 with beta 0.1."""
    result, run = imported(one(shared_data, "ccccai239"))
    assert (result["rows"], result["read"], result["skipped"], result["trainer"]) == (110, 110, [], "trl")
    assert steps(run, "loss", "eval") == list(range(100, 1001, 100))
    assert value(run, "loss", 100, "eval") == pytest.approx(0.626, abs=5e-4)
    assert value(run, "loss", 1000, "eval") == pytest.approx(0.461, abs=5e-4)
    assert result["beta"] == pytest.approx(0.1)
    assert run.meta["source"]["beta_check"]["found"] is True
    reference = run.meta["source"]["beta_check"]["reference"]
    assert reference["chosen"] == pytest.approx(-183.85, abs=0.01)
    for step in (100, 500, 1000):
        assert value(run, "ref_logps/chosen", step, "eval") == pytest.approx(-183.85, abs=0.05)
    assert np.isnan(value(run, "logps/chosen", 600, "eval"))
    assert explained(run)["label"] == "healthy"


def test_a_dead_run(shared_data: Path, imported: Importing) -> None:
    result, run = imported(one(shared_data, "DehaoDai"))
    assert (result["rows"], result["read"]) == (20, 20)
    assert {value(run, "grad_norm", s) for s in steps(run, "grad_norm")} == {0.0}
    assert explained(run)["label"] == "dead_run"


def test_a_console_log_without_bars(shared_data: Path, imported: Importing) -> None:
    """56 rows of 5 steps each, numbered by their epochs: 5, 10, ..., 280; the summary is no step."""
    path = next((shared_data / "logs").glob("danielcherubini*nobars*"))
    result, run = imported(path)
    assert (result["rows"], result["read"], result["summary_rows"], result["skipped"]) == (57, 56, 1, [])
    assert steps(run, "loss") == list(range(5, 281, 5))
    loss = [value(run, "loss", s) for s in steps(run, "loss")]
    chosen = [value(run, "logps/chosen", s) for s in steps(run, "loss")]
    assert (np.mean(loss[:14]), np.mean(loss[-14:])) == (pytest.approx(0.648, abs=1e-3), pytest.approx(0.481, abs=1e-3))
    assert np.mean(chosen[:14]) == pytest.approx(-137.7, abs=0.05)
    assert np.mean(chosen[-14:]) == pytest.approx(-149.1, abs=0.05)
    assert result["beta"] == 0.1
    verdict = explained(run)
    assert (verdict["label"], verdict["harm"]) == ("likelihood_displacement", "cannot_tell")


def test_the_same_log_with_its_bars_has_the_same_steps(shared_data: Path, imported: Importing) -> None:
    """A window of the raw file: 7 whole rows; the eighth is cut off and reported."""
    path = next((shared_data / "logs").glob("danielcherubini*rawwindow*"))
    result, run = imported(path)
    assert steps(run, "loss") == [5, 10, 15, 20, 25, 30, 35]
    assert result["steps_from"] == "progress frames"
    assert [s["why"] for s in result["skipped"]] == ["a row is cut off: no closing brace"]


def test_a_run_that_does_not_learn(shared_data: Path, imported: Importing) -> None:
    result, run = imported(one(shared_data, "hykun1989"))
    assert (result["format"], result["rows"], result["read"], result["skipped"]) == ("llamafactory", 202, 202, [])
    loss = [value(run, "loss", s) for s in range(1, 203)]
    assert (np.mean(loss[:20]), np.mean(loss[-20:])) == (pytest.approx(0.673, abs=5e-4), pytest.approx(0.725, abs=5e-4))
    assert explained(run)["label"] == "not_learning"


def test_ren_and_sutherlands_array(shared_data: Path, tmp_path: Path, imported: Importing) -> None:
    """The figures that are published with the array, to their last digit."""
    folder = tmp_path / "ren"
    shutil.copytree(shared_data / "ren_pythia410m_dpo", folder)
    shutil.copy(shared_data / "learningdyn_formal_prob_train.jsonl", folder)
    result, run = imported(folder, loss=("sigmoid",), beta=0.1)
    assert (result["format"], result["read"]) == ("ren", 25000)
    expected = {0: (0.6931, 0.0, 0.0, 0.8287), 12: (0.2086, 8.6, -10.1, 0.7817), 25: (0.0238, 11.8, -33.4, 0.7646),
                49: (0.0005, 5.6, -76.3, 0.7979)}  # fmt: skip
    spec = LossSpec.from_dict(run.meta["loss"])
    for step, (loss, chosen, rejected, bits) in expected.items():
        rows = run.pairs[run.pairs["step"] == step].sort_values("pair_id")
        sides = {side: rows[rows["side"] == side] for side in ("chosen", "rejected")}
        a, b = ((s["sum_logp"] - s["ref_sum_logp"]).to_numpy() for s in sides.values())
        assert pair_losses(spec, a, b).mean() == pytest.approx(loss, abs=5e-5)
        assert (a.mean(), b.mean()) == (pytest.approx(chosen, abs=0.05), pytest.approx(rejected, abs=0.05))
        found = metrics.bits_per_byte(sides["chosen"]["sum_logp"], sides["chosen"]["n_bytes"])
        assert found == pytest.approx(bits, abs=5e-5)
    assert explained(run)["label"] == "sign_depends_on_aggregator"
