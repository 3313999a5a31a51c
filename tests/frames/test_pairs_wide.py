"""pairs_wide says what explain says, to the bit, and keeps the identities of the design's section 2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag import DiagError, RunWriter, load_run
from tests.diagnosis.builders import build_run, pair_rows

EXAMPLE = Path(__file__).resolve().parents[2] / "runs" / "example"
SUMS = st.floats(min_value=-500.0, max_value=0.0)


def at(wide: pd.DataFrame, step: int, ids: pd.Series) -> pd.DataFrame:
    """The rows of a step in the order of some pairs."""
    rows: pd.DataFrame = wide[wide["step"] == step].set_index(wide.loc[wide["step"] == step, "pair_id"].astype(str))
    return rows.loc[list(ids)]


@pytest.mark.parametrize("of_run", ["example", "sft_term", "wpo", "bytes"])
def test_the_numbers_are_those_of_explain(of_run: str, tmp_path: Path) -> None:
    """Every pair's cross-entropies and loss at both ends, and the means, equal explain's in every bit."""
    run = load_run(EXAMPLE) if of_run == "example" else load_run(build_run(tmp_path, **CASES[of_run]).path)
    found = run.explain(from_step=0)
    wide = run.pairs_wide(splits=[found["split"]])
    before, after = (at(wide, found[key], found.pairs["pair_id"]) for key in ("from_step", "to_step"))
    for side in ("chosen", "rejected"):
        assert np.array_equal(before[f"{side}_ce"], found.pairs[f"{side}_ce_from"])
        assert np.array_equal(after[f"{side}_ce"], found.pairs[f"{side}_ce_to"])
    assert np.array_equal(before["loss"], found.pairs["loss_from"])
    assert np.array_equal(after["loss"], found.pairs["loss_to"])
    margins = run.info.beta * found["margins"]["to"]
    assert after["margin"].mean() == pytest.approx(margins, rel=1e-12)
    assert set(wide["unit"]) == {found["unit"]}


CASES: dict[str, dict[str, Any]] = {
    "sft_term": {
        "steps": {0: ([-10.0, -12.0], [-11.0, -9.0]), 5: ([-14.0, -8.0], [-30.0, -12.0])},
        "n": [4, 6],
        "loss": {"types": ["sigmoid", "sft"], "weights": [1.0, 0.3], "beta": 0.2},
    },
    "wpo": {
        "steps": {0: ([-10.0, -12.0], [-11.0, -9.0]), 5: ([-14.0, -8.0], [-30.0, -12.0])},
        "loss": {"types": ["sigmoid"], "beta": 0.1, "use_weighting": True},
        "weight": [0.5, 0.75],
    },
    "bytes": {
        "steps": {0: ([-10.0, -12.0], [-11.0, -9.0]), 5: ([-14.0, -8.0], [-30.0, -12.0])},
        "n": None,
        "n_bytes": [20, 30],
    },
}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(SUMS, SUMS, SUMS, SUMS, st.integers(1, 50)), min_size=1, max_size=6),
    st.floats(min_value=0.01, max_value=2.0),
)
def test_its_identities(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[float, ...]], beta: float) -> None:
    """ppl = exp(ce), ce = -sum / count, margin = beta (a - b), a and b the log-ratios, and for sigmoid
    loss = log(1 + exp(-margin)); at the reference itself margin 0 and loss ln 2."""
    c0, r0, c1, r1, n = (list(column) for column in zip(*pairs, strict=True))
    folder = tmp_path_factory.mktemp("wide") / "r"
    run = build_run(
        folder, {0: (c0, r0), 3: (c1, r1)}, n=[int(k) for k in n], loss={"types": ["sigmoid"], "beta": beta}
    )
    wide = run.pairs_wide()
    for side in ("chosen", "rejected"):
        assert np.array_equal(wide[f"{side}_ce"], -wide[f"{side}_sum_logp"] / wide[f"{side}_count"])
        assert np.array_equal(wide[f"{side}_ppl"], np.exp(wide[f"{side}_ce"]))
    last = at(wide, 3, pd.Series([f"p{i}" for i in range(len(pairs))]))
    assert np.array_equal(last["a"], np.subtract(c1, c0)) and np.array_equal(last["b"], np.subtract(r1, r0))
    assert np.array_equal(wide["margin"], beta * (wide["a"] - wide["b"]))
    assert np.allclose(wide["loss"], np.logaddexp(0.0, -wide["margin"]), rtol=1e-12)
    start = wide[wide["step"] == 0]
    assert (start["margin"] == 0).all() and np.allclose(start["loss"], math.log(2))


def test_values_by_hand(tmp_path: Path) -> None:
    """One pair: sums -20 and -30 over 10 tokens, under the reference -18 and -24; beta 0.1. ce 2 and 3, a = -2,
    b = -6, margin 0.1 (-2 + 6) = 0.4, loss log(1 + exp(-0.4)) = 0.513015."""
    run = build_run(tmp_path, {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])})
    (row,) = run.pairs_wide(steps=[7]).to_dict("records")
    assert (row["step"], row["split"], row["pair_id"], row["unit"]) == (7, "eval", "p0", "token")
    assert (row["chosen_ce"], row["rejected_ce"], row["a"], row["b"]) == (2.0, 3.0, -2.0, -6.0)
    assert row["chosen_ppl"] == pytest.approx(7.389056, abs=1e-6)
    assert row["margin"] == pytest.approx(0.4, abs=1e-15)
    assert row["loss"] == pytest.approx(0.513015, abs=1e-6)


def test_columns_steps_and_splits(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    for split in ("eval", "eval_other"):
        for step in (0, 5):
            writer.write("pairs", pair_rows(step, [-1.0], [-2.0], split=split), split)
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1})
    writer.finish()
    run = load_run(tmp_path / "r")
    assert len(run.pairs_wide()) == 4
    part = run.pairs_wide(["split", "step", "loss"], steps=[5], splits=["eval_other"])
    assert list(part.columns) == ["split", "step", "loss"]
    assert part[["split", "step"]].to_numpy().tolist() == [["eval_other", 5]]
    assert math.isnan(part["loss"].iloc[0])  # no reference
    assert run.pairs_wide(steps=[99]).empty
    with pytest.raises(DiagError, match=r"unknown columns \['ppl'\]"):
        run.pairs_wide(["ppl"])


def test_the_reference_is_found_whatever_steps_are_asked_for(tmp_path: Path) -> None:
    """A run scored from its start says which step's policy is the reference, and has no rows of it."""
    run = build_run(
        tmp_path, {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])}, reference=None, facts={"reference": {"step": 0}}
    )
    assert run.pairs_wide(["step", "a"], steps=[7]).to_numpy().tolist() == [[7.0, -2.0]]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [({"types": ["bco_pair"], "beta": 0.1}, 0.4), (None, math.nan)],
    ids=["couples the batch", "not known"],
)
def test_a_loss_without_a_value_of_its_own_is_unknown(
    loss: dict[str, Any] | None, expected: float, tmp_path: Path
) -> None:
    """The margin needs beta alone, and a coupled loss has one."""
    run = build_run(tmp_path, {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])}, loss=loss)
    row = run.pairs_wide(steps=[7]).iloc[0]
    assert math.isnan(row["loss"])
    assert row["margin"] == pytest.approx(expected, nan_ok=True)


def test_one_side_alone_and_no_pairs(tmp_path: Path) -> None:
    alone = build_run(tmp_path / "sft", {0: ([-5.0], None), 1: ([-4.0], None)}, loss=None).pairs_wide()
    assert alone["chosen_ce"].tolist() == [0.5, 0.4]
    assert alone[["rejected_ce", "b", "margin", "loss"]].isna().all(axis=None)
    RunWriter(tmp_path / "log").finish()
    empty = load_run(tmp_path / "log").pairs_wide()
    assert empty.empty
    assert empty.dtypes.map(str).to_dict() == alone.dtypes.map(str).to_dict()
