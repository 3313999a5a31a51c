"""The explanation's similarity section: features from the records and ches.parquet, against the change of chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import build_run, build_token_run, token_rows

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis import explain
from dpo_diag.errors import DiagError
from dpo_diag.records.schemas import CHES
from dpo_diag.records.side_tables import write_side_table

N = 12
FELL = np.arange(1.0, N + 1)


def with_ches(path: Path, ches: np.ndarray, ids: list[str] | None = None) -> Path:
    """Chosen answers of 10 tokens that fall by 1, 2, ... 12 nats; `ches` of each, its tenth as ln-CHES."""
    build_run(path, {0: ([-20.0] * N, [-20.0] * N), 9: (list(-20 - FELL), [-40.0] * N)})
    names = ids or [f"p{i}" for i in range(N)]
    rows = {"pair_id": names, "ches": ches, "ln_ches": -ches, "n_chosen": 10, "n_rejected": 10, "split": "eval"}
    write_side_table(path, CHES, pd.DataFrame(rows))
    return path


def test_ches_that_foretells_the_fall(tmp_path: Path) -> None:
    """CHES grows exactly with the fall: rho -1, ln-CHES (here its negative) +1; the length is constant."""
    section = explain(with_ches(tmp_path / "run", FELL**3))["similarity"]
    found = {e["feature"]: e for e in section["correlations_with_chosen_change"]}
    assert found["ches"]["rho"] == pytest.approx(-1) and found["ln_ches"]["rho"] == pytest.approx(1)
    assert found["ches"]["rho_given_length"] == pytest.approx(-1) and found["ches"]["n"] == N
    assert section["ches"] == {"pairs": N, "of": N}
    assert {"length_gap", "ref_logp_gap", "edit_distance"} <= set(found)


def test_rows_are_joined_by_pair_not_by_place(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(N)
    path = with_ches(tmp_path / "run", FELL[order], [f"p{i}" for i in order])
    found = {e["feature"]: e for e in explain(path)["similarity"]["correlations_with_chosen_change"]}
    assert found["ches"]["rho"] == pytest.approx(-1)


def test_without_a_file_or_with_another_sets(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0], [-6.0]), 9: ([-5.0], [-6.0])})
    assert "no ches.parquet" in explain(run)["similarity"]["ches"]["not_applicable"]
    foreign = with_ches(tmp_path / "other", FELL, [f"x{i}" for i in range(N)])
    section = explain(foreign)["similarity"]
    assert "none of these pairs" in section["ches"]["not_applicable"]
    assert "ches" not in {e["feature"] for e in section["correlations_with_chosen_change"]}


def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = with_ches(tmp_path / "run", FELL)
    pd.DataFrame({"pair_id": ["p0"], "ches": [0.5]}).to_parquet(path / "ches.parquet")
    with pytest.raises(DiagError, match="column is missing"):
        explain(path)


def test_edit_distance_from_the_references_tokens_alone(tmp_path: Path) -> None:
    """4 5 2 against 4 6 2: one of three tokens. Only reference rows hold tokens here."""
    writer = RunWriter(tmp_path / "run")
    source = build_token_run(tmp_path / "full", {"q": ([4, 5, 2], [4, 6, 2])},
                             {s: {"q": ([-1] * 3, [-2] * 3)} for s in (0, 9)})  # fmt: skip
    for step in (0, 9):
        writer.write("pairs", source.read("pairs", steps=[step]), split="eval")
    sides = (("chosen", [4, 5, 2]), ("rejected", [4, 6, 2]))
    rows = [token_rows(0, "q", side, ids, [-1.0] * 3, role="ref") for side, ids in sides]
    writer.write("tokens", pd.concat(rows), split="eval")
    writer.finish()
    section = explain(load_run(tmp_path / "run"))["similarity"]
    assert section["means"]["edit_distance"] == pytest.approx(1 / 3)
