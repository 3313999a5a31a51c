"""Rows that say one pair_id at one step: one row twice, a step written again, or several pairs, which all count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpo_diag.importers.same_ids import told_apart
from tests.importers.conftest import Importing
from tests.importers.test_pair_table import row, write


def total(run: Any, step: int) -> tuple[int, float]:
    """(chosen rows, their sum of log-probs) of the policy at a step."""
    rows = run.pairs[(run.pairs["step"] == step) & (run.pairs["side"] == "chosen")]
    return len(rows), float(rows["sum_logp"].sum())


def test_texts_tell_pairs_of_one_id_apart(tmp_path: Path, imported: Importing) -> None:
    """Three answers of one question, all called q1: -10 - 20 - 40 = -70 at step 0, -11 - 21 - 41 = -73 at step 5."""
    answers = [("yes", -10.0), ("no", -20.0), ("maybe", -40.0)]
    rows = [row(step, "q1", s - step / 5, -9.0) | {"prompt": "Why?", "chosen": a, "rejected": "dunno"}
            for step in (0, 5) for a, s in answers]  # fmt: skip
    result, run = imported(write(tmp_path / "p.jsonl", rows))
    assert total(run, 0) == (3, -70.0) and total(run, 5) == (3, -73.0)
    assert result["notes"][0] == "eval: 3 pairs have 1 id (q1): those of another content than the first have its hash"
    info = run.info.splits["eval"]
    assert (info.n_same_id, info.told_apart_by) == (3, "content")
    assert dict(zip(run.texts["pair_id"], run.texts["chosen"], strict=True))["q1"] == "yes"
    assert set(run.texts["chosen"]) == {"yes", "no", "maybe"}


def test_order_tells_them_apart_where_nothing_else_does(tmp_path: Path, imported: Importing) -> None:
    """Two rows of id a beside one of b: -10 - 30 - 5 = -45, then -12 - 31 - 5 = -48."""
    rows = [row(0, "a", -10.0, -9.0), row(0, "b", -5.0, -9.0), row(0, "a", -30.0, -9.0),
            row(5, "a", -12.0, -9.0), row(5, "b", -5.0, -9.0), row(5, "a", -31.0, -9.0)]  # fmt: skip
    result, run = imported(write(tmp_path / "p.jsonl", rows))
    assert total(run, 0) == (3, -45.0) and total(run, 5) == (3, -48.0)
    assert "2 pairs have 1 id (a): their order tells them apart" in result["notes"][0]
    assert (run.info.splits["eval"].n_same_id, run.info.splits["eval"].told_apart_by) == (2, "order")
    at_5 = run.pairs[(run.pairs["step"] == 5) & (run.pairs["side"] == "chosen")].set_index("pair_id")["sum_logp"]
    assert dict(at_5) == {"a": -12.0, "a#2": -31.0, "b": -5.0}


def test_a_step_written_again_keeps_its_ids(tmp_path: Path, imported: Importing) -> None:
    """A resumed run repeats step 5 with other values: the last are taken, -9 - 4 = -13, and it is said."""
    steps = [(0, -10.0, -5.0), (5, -11.0, -6.0), (10, -12.0, -7.0), (5, -9.0, -4.0), (10, -8.0, -3.0)]
    rows = [row(step, name, value, -9.0) for step, a, b in steps for name, value in (("a", a), ("b", b))]
    result, run = imported(write(tmp_path / "p.jsonl", rows))
    assert total(run, 5) == (2, -13.0) and total(run, 10) == (2, -11.0)
    assert run.info.splits["eval"].n_same_id is None
    assert "4 rows repeat the step and pair_id of another: the last of each is taken" in result["notes"]


def test_one_row_twice_is_one_row(tmp_path: Path, imported: Importing) -> None:
    rows = [row(0, "a", -10.0, -9.0), row(0, "a", -10.0, -9.0), row(0, "b", -5.0, -9.0)]
    result, run = imported(write(tmp_path / "p.jsonl", rows))
    assert total(run, 0) == (2, -15.0) and run.info.splits["eval"].n_same_id is None
    assert result["duplicates"] == 1


@pytest.mark.parametrize("by_pair", [False, True])
def test_lengths_tell_apart_in_any_order(by_pair: bool) -> None:
    """One id, two pairs of 3 and 7 tokens at three steps, written step by step or pair by pair. A length that changes
    from step to step alone is another cut of one pair."""
    rows = [{"step": s, "split": "eval", "pair_id": "a", "chosen_n_tokens": n, "chosen_sum_logp": -n - s / 10}
            for s in (0, 5, 10) for n in (3, 7)]  # fmt: skip
    if by_pair:
        rows.sort(key=lambda r: (r["chosen_n_tokens"], r["step"]))
    frame, shared = told_apart(pd.DataFrame(rows))
    assert shared == {"eval": ["a"]} and len(frame) == 6
    assert frame.groupby("pair_id")["chosen_n_tokens"].nunique().to_dict() == {"a": 1, "a#2": 1}
    cut = [{**r, "chosen_n_tokens": 3 + r["step"]} for r in rows[:1] + rows[2:3]] * 2
    assert told_apart(pd.DataFrame(cut))[1] == {}
