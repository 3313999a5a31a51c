"""What a log of means allows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dpo_diag import Run, RunWriter, load_run
from dpo_diag.diagnosis.decompose.means import perplexity_of_means, summarise_means
from dpo_diag.errors import DiagError


def log_of(path: Path, split: str, columns: dict[str, list[float]]) -> Run:
    writer = RunWriter(path, kind="imported")
    rows = [
        {"step": 10 * i, "split": split, "name": name, "value": value}
        for name, values in columns.items()
        for i, value in enumerate(values)
    ]
    writer.write("history", rows)
    writer.finish()
    return load_run(path)


def test_evaluations_compare_first_and_last(tmp_path: Path) -> None:
    found = summarise_means(log_of(tmp_path / "run", "eval", {"loss": [0.7, 0.5, 0.4]}), None, None, None)
    assert (found.from_step, found.to_step) == (0, 20)
    entry = found.values["loss"]
    assert (entry["from"], entry["to"], entry["interval"]) == (0.7, 0.4, None)


def test_training_rows_compare_quarters_with_an_interval(tmp_path: Path) -> None:
    """16 rows: means of the first and last four, 1 and 2. Of 15 differences six are .2 and two are .4, the others 0:
    noise sqrt(.56 / 15 / 2) = .13663, error of the change .13663 sqrt(2 / 4) = .09661, t(8) .975 = 2.306: +- .2228."""
    values = [0.9, 1.1, 0.9, 1.1, *[1.5] * 8, 1.9, 2.1, 1.9, 2.1]
    entry = summarise_means(log_of(tmp_path / "run", "train", {"loss": values}), None, None, None).values["loss"]
    assert (entry["from"], entry["to"], entry["n_from"]) == (pytest.approx(1.0), pytest.approx(2.0), 4)
    assert entry["interval"] == [pytest.approx(0.7772, abs=1e-4), pytest.approx(1.2228, abs=1e-4)]


def test_rewards_show_what_batch_noise_hides(tmp_path: Path) -> None:
    """Each batch has its own pairs: their log-probs scatter by 13 nats, the rewards (differences to the reference) do
    not; the same fall by .9 of reward (9 nats at beta .1) is certain in one and not in the other."""
    rng = np.random.default_rng(3)
    reward = np.linspace(-0.45, -1.4, 24) + rng.normal(0, 0.1, 24)
    logps = -140 + 10 * reward + rng.normal(0, 13, 24)
    columns = {"rewards/chosen": reward.tolist(), "logps/chosen": logps.tolist()}
    values = summarise_means(log_of(tmp_path / "run", "train", columns), None, None, None).values
    assert values["rewards/chosen"]["interval"][1] < 0
    low, high = values["logps/chosen"]["interval"]
    assert low < 0 < high


def test_fixed_sets_come_before_training_rows(tmp_path: Path) -> None:
    run = log_of(tmp_path / "run", "train", {"loss": [0.7] * 9})
    RunWriter(run.path, resume_step=80).write(
        "history", [{"step": s, "split": "eval", "name": "loss", "value": 0.5} for s in (0, 40)], split="eval"
    )
    assert summarise_means(load_run(run.path), None, None, None).split == "eval"


def test_nan_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    found = summarise_means(
        log_of(tmp_path / "run", "eval", {"loss": [0.7, math.nan, 0.4, math.inf]}), None, None, None
    )
    entry = found.values["loss"]
    assert (entry["from"], entry["to"], entry["not_finite_rows"]) == (0.7, 0.4, 2)


def test_the_steps_named_are_those_of_the_rows(tmp_path: Path) -> None:
    run = log_of(tmp_path / "run", "eval", {"loss": [0.7, 0.5, 0.4]})
    first, second, last = sorted(run.history["step"].unique())
    found = summarise_means(run, int(first) + 1, int(last) + 50, None)
    assert (found.from_step, found.to_step) == (second, last)
    assert found.values["loss"]["from"] == 0.5
    with pytest.raises(DiagError, match="no row between these steps"):
        summarise_means(run, int(last) + 1, None, None)


def test_dispersion_from_two_logged_means() -> None:
    """H2O's charts: cross-entropy 3 -> 4 and ppl_seq_mean 2027.81 -> 54.60: dlog -3.61471 = level 1 + dispersion
    -4.61471 (the worked example)."""
    values = {
        "ce/chosen": {"from": 3.0, "to": 4.0, "delta": 1.0},
        "ppl_seq_mean/chosen": {"from": 2027.8097, "to": 54.59815, "delta": 0.0},
    }
    row = perplexity_of_means(values)["chosen"]["ppl_seq_mean"]
    assert row["dispersion"] == pytest.approx(-4.61471, abs=1e-5)
    assert perplexity_of_means(values)["chosen"]["ppl_seq_geomean"]["to"] == pytest.approx(54.59815)


def test_log_prob_sums_alone_give_no_perplexity() -> None:
    found = perplexity_of_means({"logps/chosen": {"from": -100.0, "to": -120.0, "delta": -20.0}})
    assert "without token counts" in found["not_applicable"]


def test_a_perplexity_alone_has_no_split() -> None:
    row = perplexity_of_means({"ppl_token/chosen": {"from": 2.0, "to": 4.0, "delta": 2.0}})["chosen"]["ppl_token"]
    assert row["dlog"] == pytest.approx(math.log(2)) and row["level"] is None and row["length_weight"] is None


def test_a_supervised_run_is_not_told_that_it_logged_no_perplexity() -> None:
    values = {"ppl_token/response": {"from": 900.0, "to": 13.0, "delta": -887.0}}
    assert perplexity_of_means(values)["not_applicable"].startswith("a supervised run has no chosen and rejected")
    assert perplexity_of_means({})["not_applicable"].startswith("the log holds neither cross-entropies")
