"""Token sums by role, from records on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import build_run, build_token_run, token_rows

from dpo_diag import load_run
from dpo_diag.diagnosis.aligned import Aligned, align
from dpo_diag.diagnosis.decompose.tokens import (
    TokenChange,
    after_first_difference,
    by_role,
    follow_roles,
    level_by_token,
    summarise_tokens,
)
from dpo_diag.diagnosis.decompose.tokens import token_rows as rows_of
from dpo_diag.records import Run
from dpo_diag.records.files import write_parquet

RESPONSES = {"q1": ([7, 8, 1, 5, 2], [7, 8, 3, 5, 2]), "q2": ([4, 2], [6, 6, 2])}
START = {"q1": ([-1, -1, -1, -1, -1], [-2, -2, -2, -2, -2]), "q2": ([-1, -1], [-1, -1, -1])}
END = {"q1": ([-1, -1, -2, -3, -1.5], [-2, -2, -6, -4, -2]), "q2": ([-2, -0.5], [-1, -4, -1])}


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Run, Aligned, TokenChange]:
    run = build_token_run(tmp_path / "run", RESPONSES, {0: START, 10: END})
    aligned = align(run)
    change = aligned.tokens
    assert change is not None
    return run, aligned, change


def test_sums_by_role_by_hand(opened: tuple[Run, Aligned, TokenChange]) -> None:
    """Chosen: q1 roles p p f s e, changes 0 0 -1 -2 -.5; q2 roles f e, changes -1 +.5. So first -2, shared after -2,
    end 0, prefix 0, in all -4. Level: q1 3.5/(5*2) = .35, q2 .5/(2*2) = .125."""
    table = by_role(opened[2]).set_index(["side", "role"])
    chosen = table.loc["chosen"]
    assert chosen["delta"].to_dict() == {"shared_prefix": 0, "first_difference": -2, "shared_after": -2, "end": 0}
    assert chosen["n_tokens"].to_dict() == {"shared_prefix": 2, "first_difference": 2, "shared_after": 1, "end": 2}
    assert chosen["share"].to_dict() == {"shared_prefix": 0, "first_difference": 0.5, "shared_after": 0.5, "end": 0}
    assert chosen["level"].sum() == pytest.approx(0.35 + 0.125)
    assert (table["residual"] == 0).all()
    rejected = table.loc["rejected"]["delta"].to_dict()
    assert rejected == {"shared_prefix": 0, "first_difference": -4, "differing": -3, "shared_after": -2, "end": 0}


def test_dpop_claim_is_a_number(opened: tuple[Run, Aligned, TokenChange]) -> None:
    found = after_first_difference(opened[2])
    assert (found["delta_before"], found["delta_at"], found["delta_after"]) == (0.0, -2.0, -2.0)
    assert (found["share"], found["share_at"]) == (1.0, 0.5)
    assert found["token_share"] == pytest.approx(5 / 7)


def test_levels_of_tokens_add_up_to_the_level(opened: tuple[Run, Aligned, TokenChange]) -> None:
    _, aligned, change = opened
    rows = rows_of(change)
    pairs = aligned.pairs
    for side in ("chosen", "rejected"):
        ce = [-pairs[f"{side}_sum_logp_{w}"] / pairs[f"{side}_n_tokens_{w}"] for w in (0, 1)]
        total = rows.loc[rows["side"] == side, "level"].sum()
        assert total == pytest.approx(float((ce[1] - ce[0]).mean()), rel=1e-12)
    assert level_by_token(change).shape == (change.layout.size,)


def test_token_rows_name_place_and_role(opened: tuple[Run, Aligned, TokenChange]) -> None:
    rows = rows_of(opened[2], ["q2"])
    assert rows[["side", "position", "token_id", "role", "delta"]].values.tolist() == [
        ["chosen", 0, 4, "first_difference", -1.0],
        ["chosen", 1, 2, "end", 0.5],
        ["rejected", 0, 6, "first_difference", 0.0],
        ["rejected", 1, 6, "differing", -3.0],
        ["rejected", 2, 2, "end", 0.0],
    ]


def test_along_the_run_by_role(opened: tuple[Run, Aligned, TokenChange]) -> None:
    frame = follow_roles(*opened[1:])
    first = frame[(frame["side"] == "chosen") & (frame["role"] == "first_difference")]
    assert first[["step", "n_tokens", "mean_logp"]].values.tolist() == [[0, 2, -1.0], [10, 2, -2.0]]


def test_order_duplicates_and_foreign_tokens_change_nothing(tmp_path: Path) -> None:
    """Rows shuffled, some written twice by another rank, rows of a pair that is not aligned: the same sums."""
    run = build_token_run(tmp_path / "run", RESPONSES, {0: START, 10: END})
    change = align(run).tokens
    assert change is not None
    expected = by_role(change)
    table = run.arrow("tokens", steps=[10])
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    for path in run.files("tokens", [10]):
        path.unlink()
    write_parquet(tmp_path / "run/tokens/00000010-00000010.eval.r0.parquet", shuffled)
    write_parquet(tmp_path / "run/tokens/00000010-00000010.eval.r1.parquet", shuffled.slice(0, 6))
    again = load_run(tmp_path / "run")
    change = align(again).tokens
    assert change is not None
    pd.testing.assert_frame_equal(by_role(change), expected)


def test_an_answer_with_a_missing_or_infinite_token_is_left_out_and_counted(tmp_path: Path) -> None:
    end = {**END, "q2": ([-2, -np.inf], [-1, -4, -1])}
    run = build_token_run(tmp_path / "run", RESPONSES, {0: START, 10: end})
    aligned = align(run)
    change = aligned.tokens
    assert change is not None
    summary = summarise_tokens(aligned, change)
    assert (summary["answers"], summary["answers_used"], summary["answers_infinite"]) == (4, 3, 1)
    assert by_role(change).query("side == 'chosen'")["n_tokens"].sum() == 5


def test_float32_token_records_against_float64_pairs(tmp_path: Path) -> None:
    """Pair sums .1 away from what their tokens sum to: the gap is told, the residual stays 0."""
    run = build_token_run(tmp_path / "run", {"q": ([4, 2], [6, 2])}, {0: {"q": ([-1, -1], [-1, -1])},
                                                                      10: {"q": ([-2, -1], [-1, -1])}})  # fmt: skip
    aligned = align(run)
    aligned.pairs["chosen_sum_logp_1"] -= 0.1
    change = aligned.tokens
    assert change is not None
    assert summarise_tokens(aligned, change)["records_gap"]["chosen"] == pytest.approx(-0.1)
    assert (by_role(change)["residual"] == 0).all()


def test_without_end_token_the_common_last_token_is_taken(tmp_path: Path) -> None:
    run = build_token_run(tmp_path / "run", RESPONSES, {0: START, 10: END}, end=None)
    change = align(run).tokens
    assert change is not None
    assert by_role(change).query("role == 'end'")["n_tokens"].tolist() == [2, 2]


def test_runs_without_token_rows(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0], [-6.0]), 10: ([-4.0], [-9.0])})
    assert align(run).tokens is None


def test_against_the_reference(tmp_path: Path) -> None:
    run = build_token_run(tmp_path / "run", RESPONSES, {0: START, 10: END})
    change = align(run, "ref").tokens
    assert change is not None
    assert by_role(change).query("side == 'chosen'")["delta"].sum() == -4.0
    assert token_rows(0, "q", "chosen", [1], [-1.0])["position"].tolist() == [0]
