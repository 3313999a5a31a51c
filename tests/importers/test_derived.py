"""Values that follow exactly, marked so; and the checks on what the log says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.importers import import_path
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value

REF = {"chosen": -100.0, "rejected": -120.0}


def log(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def evaluations(beta: float, moves: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Rows of one fixed set whose reference log-probs are REF: rewards = beta (logps - ref)."""
    return [
        {
            "step": 10 * i, "eval_logps/chosen": REF["chosen"] + a, "eval_logps/rejected": REF["rejected"] + b,
            "eval_rewards/chosen": beta * a, "eval_rewards/rejected": beta * b, "eval_loss": 0.6,
        }
        for i, (a, b) in enumerate(moves, start=1)
    ]  # fmt: skip


MOVES = [(1.0, -2.0), (-3.0, -9.0), (-7.5, -20.0), (-6.0, -30.0)]


def test_reference_log_probs_from_rewards_and_beta(tmp_path: Path, imported: Importing) -> None:
    result, run = imported(log(tmp_path / "log.jsonl", evaluations(0.1, MOVES)), beta=0.1)
    for step in (10, 20, 30, 40):
        assert value(run, "ref_logps/chosen", step, "eval") == pytest.approx(-100.0, abs=1e-9)
        assert value(run, "ref_logps/rejected", step, "eval") == pytest.approx(-120.0, abs=1e-9)
    marked = run.history.set_index("name")["derived"]
    assert marked["ref_logps/chosen"].all()
    assert not marked["logps/chosen"].any()
    check = run.meta["source"]["beta_check"]
    assert (check["constant"], check["found"], check["evaluations"]) == (True, False, 4)
    assert result["notes"] == []


def test_a_wrong_beta_shows_in_a_reference_that_moves(tmp_path: Path, imported: Importing) -> None:
    result, run = imported(log(tmp_path / "log.jsonl", evaluations(0.1, MOVES)), beta=0.5)
    assert run.meta["source"]["beta_check"]["constant"] is False
    assert any("not constant" in n for n in result["notes"])


@given(beta=st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 2.0]), scale=st.floats(0.5, 20.0))
@settings(max_examples=15, deadline=None)
def test_beta_is_inferred_where_nothing_names_it(
    tmp_path_factory: pytest.TempPathFactory, beta: float, scale: float
) -> None:
    folder = tmp_path_factory.mktemp("beta")
    rows = evaluations(beta, [(a * scale, b * scale) for a, b in MOVES])
    result = import_path(log(folder / "log.jsonl", rows), folder / "run")
    assert result["beta"] == pytest.approx(beta, rel=1e-12)


def test_training_batches_say_nothing_about_beta(tmp_path: Path, imported: Importing) -> None:
    """Each training row has other pairs: its derived reference moves, and that is no sign of a wrong beta."""
    rows = [{"step": i, "loss": 0.6, "logps/chosen": -50.0 * i, "logps/rejected": -60.0, "rewards/chosen": 0.1 * i,
             "rewards/rejected": 0.0} for i in (1, 2, 3, 4)]  # fmt: skip
    result, run = imported(log(tmp_path / "log.jsonl", rows))
    assert (result["beta"], run.info.source.beta_check) == (None, None)
    _, run = imported(log(tmp_path / "log.jsonl", rows), beta=0.1)
    assert value(run, "ref_logps/chosen", 2) == pytest.approx(-100.0 - 2.0)


def test_the_nll_part_where_the_loss_less_it_starts_at_ln_2(tmp_path: Path, imported: Importing) -> None:
    """1.238 - 0.545 = 0.693: the first loss is that of the reference plus an NLL term of weight 1."""
    rows = [{"step": 10, "loss": 1.238, "nll_loss": 0.545, "rewards/margins": 0.0},
            {"step": 20, "loss": 1.1, "nll_loss": 0.5, "rewards/margins": 0.2}]  # fmt: skip
    _, run = imported(log(tmp_path / "log.jsonl", rows))
    assert value(run, "preference_loss", 10) == pytest.approx(math.log(2), abs=2e-4)
    assert value(run, "preference_loss", 20) == pytest.approx(0.6)
    assert run.meta["source"]["nll_weight"] == 1.0
    _, run = imported(log(tmp_path / "log.jsonl", [{**rows[0], "loss": 1.6}, rows[1]]))
    assert "preference_loss" not in set(run.history["name"])
    assert run.info.source.nll_weight is None


def test_margins_only_where_they_are_not_logged(tmp_path: Path, imported: Importing) -> None:
    rows = [{"step": 1, "loss": 0.6, "rewards/chosen": 0.5, "rewards/rejected": -0.25}]
    _, run = imported(log(tmp_path / "log.jsonl", rows))
    assert value(run, "rewards/margins", 1) == 0.75
    _, run = imported(log(tmp_path / "log.jsonl", [{**rows[0], "rewards/margins": 9.0}]))
    assert value(run, "rewards/margins", 1) == 9.0


def test_swapped_sides_are_noted(tmp_path: Path, imported: Importing) -> None:
    """LLaMA-Factory installs of November 2024 swapped chosen and rejected: margins are then rejected - chosen."""
    rows = [{"step": i, "loss": 0.6, "rewards/chosen": -0.1 * i, "rewards/rejected": 0.1 * i,
             "rewards/margins": 0.2 * i} for i in range(1, 6)]  # fmt: skip
    result, _ = imported(log(tmp_path / "log.jsonl", rows))
    assert any("swapped" in n for n in result["notes"])


def test_nan_in_an_evaluation_does_not_spoil_the_check(tmp_path: Path, imported: Importing) -> None:
    rows = evaluations(0.1, MOVES)
    rows[1] = {**rows[1], "eval_logps/chosen": math.nan, "eval_rewards/chosen": math.nan}
    result, run = imported(log(tmp_path / "log.jsonl", rows))
    assert result["beta"] == 0.1
    assert math.isnan(value(run, "ref_logps/chosen", 20, "eval"))
    assert steps(run, "ref_logps/chosen", "eval") == [10, 20, 30, 40]


def test_a_long_log_is_inferred_from_evenly_spaced_steps(
    tmp_path: Path, imported: Importing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loss = softplus(-margin) at every step, so at any choice of steps: 5 of 100 show sigmoid as all 100 do."""
    rows = [
        {"step": i, "loss": math.log1p(math.exp(-i / 50)), "rewards/chosen": i / 100, "rewards/rejected": -i / 100}
        for i in range(1, 101)
    ]
    path = log(tmp_path / "log.jsonl", rows)
    for limit in (100, 5):
        monkeypatch.setattr("dpo_diag.importers.decisions.INFERRED_FROM", limit)
        _, run = imported(path)
        assert run.info.loss_like == "sigmoid"
