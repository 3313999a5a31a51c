"""Ren & Sutherland's 500 pairs over 50 evaluations (arXiv 2407.10490): the figures that any explanation must find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpo_diag import Run, RunWriter, load_run
from dpo_diag.diagnosis import explain
from dpo_diag.records import make_pair_id


@pytest.fixture(scope="module")
def ren(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    values = np.load(shared_data / "ren_pythia410m_dpo/logp_npy_all_chosen.npy")
    lines = (shared_data / "learningdyn_formal_prob_train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in lines]
    path = tmp_path_factory.mktemp("ren") / "run"
    writer = RunWriter(path, kind="imported")
    ids = [make_pair_id(t["prompt"], t["chosen"], t["rejected"]) for t in texts]
    parts = []
    for step in range(values.shape[0]):
        for side, metric in (("chosen", 0), ("rejected", 9)):
            rows = pd.DataFrame({"step": step, "split": "probe", "role": "policy", "pair_id": ids, "side": side})
            rows["sum_logp"] = values[step, metric]
            rows["n_bytes"] = [len(t[side].encode()) for t in texts]
            parts.append(rows)
            if step == 0:
                parts.append(rows.assign(role="ref"))
    writer.write("pairs", pd.concat(parts), split="probe")
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1})
    writer.finish()
    return load_run(path)


def test_whole_run(ren: Run) -> None:
    document = explain(ren)
    assert (document["from_step"], document["to_step"], document["n_pairs"], document["unit"]) == (
        "ref",
        49,
        500,
        "byte",
    )
    assert (document["loss"]["from"], document["loss"]["to"]) == (
        pytest.approx(0.6931, abs=5e-5), pytest.approx(0.0005, abs=5e-5),
    )  # fmt: skip
    assert document["quadrants"]["mean_delta_chosen"] == pytest.approx(5.6, abs=0.05)
    assert document["quadrants"]["mean_delta_rejected"] == pytest.approx(-76.3, abs=0.05)
    chosen = document["perplexity"]["chosen"]
    for name, before, after in (("ppl_token", 1.776, 1.739), ("ppl_seq_geomean", 2.028, 2.061),
                                ("ppl_seq_mean", 2.344, 2.736)):  # fmt: skip
        assert (chosen[name]["from"], chosen[name]["to"]) == (
            pytest.approx(before, abs=5e-4), pytest.approx(after, abs=5e-4),
        )  # fmt: skip
    bits = document["bits_per_byte"]["chosen"]
    assert (bits["from"], bits["to"]) == (pytest.approx(0.8287, abs=5e-5), pytest.approx(0.7979, abs=5e-5))
    assert document["verdict"]["label"] == "sign_depends_on_aggregator"
    assert document["verdict"]["harm"] == "cannot_tell"


def test_the_turn_at_evaluation_25_is_found_unasked(ren: Run) -> None:
    document = explain(ren)
    turns = {t["quantity"]: t for t in document["turning_points"]}
    assert {name: t["step"] for name, t in turns.items()} == {
        "ppl_token": 25, "ppl_seq_geomean": 25, "ppl_seq_mean": 13,
    }  # fmt: skip
    for turn in turns.values():
        assert turn["to_step"] == 49 and turn["loss_to"] < turn["loss_from"] and turn["interval"][0] > 0
    said = " ".join(s["text"] for s in document["narrative"][0]["sentences"])
    assert (
        "There is a turning point: from step 25 to 49 the loss still fell 0.0237" in said
        and " → 0.000528" in said
        and "depends on how answers are averaged" in said
    )


def test_from_25_to_49(ren: Run) -> None:
    document = explain(ren, 25, 49)
    assert (document["loss"]["from"], document["loss"]["to"]) == (
        pytest.approx(0.0238, abs=5e-5), pytest.approx(0.0005, abs=5e-5),
    )  # fmt: skip
    row = document["perplexity"]["chosen"]["ppl_seq_mean"]
    assert (row["from"], row["to"]) == (pytest.approx(2.240, abs=5e-4), pytest.approx(2.736, abs=5e-4))
    assert abs(row["residual"]) <= 1e-9 * row["dlog"]
    assert document["verdict"]["label"] == "likelihood_displacement"


def test_half_way(ren: Run) -> None:
    assert explain(ren, 0, 12)["loss"]["to"] == pytest.approx(0.2086, abs=5e-5)
