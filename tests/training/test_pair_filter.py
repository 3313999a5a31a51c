"""Which training pairs a filter keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from dpo_diag.config import FilterConfig
from dpo_diag.errors import DiagError
from dpo_diag.inference.scoring import PairTokens, score_pairs
from dpo_diag.records import make_pair_id
from dpo_diag.records.schemas import CHES
from dpo_diag.records.side_tables import read_side_table
from dpo_diag.training import pair_filter
from dpo_diag.training.pair_filter import keep_pairs

from .tiny import make_model, make_pairs

ROWS = [{"prompt": "p", "chosen": f" {i}", "rejected": " x", "pair_id": f"id{i}"} for i in range(6)]


def kept(config: FilterConfig, rows: list[Any], **known: Any) -> tuple[list[str], dict[str, Any]]:
    found, facts = keep_pairs(config, SimpleNamespace(), rows, (None, "keep_start"), say=lambda _: None, **known)
    return [row["pair_id"] for row in found], facts


def test_the_lowest_scores_stay_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scores 3 1 2 - 5 4 (one pair does not reach the loss): half of six are the three lowest, 1 2 3."""
    scores = pd.DataFrame(
        {"pair_id": ["id0", "id1", "id2", "id4", "id5"], "ches": 0.0, "ln_ches": [3.0, 1.0, 2.0, 5.0, 4.0],
         "n_chosen": 1, "n_rejected": 1}
    )  # fmt: skip
    monkeypatch.setattr(pair_filter, "_ches", lambda *_: scores)
    found, facts = kept(FilterConfig("ln_ches", 0.5), ROWS, folder=tmp_path)
    assert found == ["id0", "id1", "id2"]
    assert facts == {"kind": "ln_ches", "keep": 0.5, "kept": 3, "of": 6, "highest_kept": 3.0}
    assert read_side_table(tmp_path, CHES, "train")["ln_ches"].tolist() == [3.0, 1.0, 2.0, 5.0, 4.0]


def test_none_keeps_all_and_random_keeps_the_same_in_any_order() -> None:
    assert kept(FilterConfig(), ROWS) == ([f"id{i}" for i in range(6)], {})
    found, facts = kept(FilterConfig("random", 0.5), ROWS)
    again, _ = kept(FilterConfig("random", 0.5), ROWS[::-1])
    assert len(found) == 3 and sorted(again) == found
    assert facts == {"kind": "random", "keep": 0.5, "kept": 3, "of": 6}
    with pytest.raises(DiagError, match="the filter leaves no pair"):
        kept(FilterConfig("random", 0.01), ROWS)


@pytest.mark.parametrize("kind", ["random", "ln_ches"])
def test_a_pair_that_stands_twice_counts_once_and_stays_twice_or_goes(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Six pairs, each twice, half of them: three pairs, six rows; by scores 0 to 5 the first three."""
    scores = pd.DataFrame({"pair_id": [f"id{i}" for i in range(6)] * 2, "ln_ches": [*range(6)] * 2})
    monkeypatch.setattr(pair_filter, "_ches", lambda *_: scores)
    found, facts = kept(FilterConfig(kind, 0.5), [*ROWS, *ROWS])
    assert len(set(found)) == 3 and found[:3] == found[3:] and (facts["kept"], facts["of"]) == (6, 12)
    assert kind == "random" or found[:3] == ["id0", "id1", "id2"]


def test_every_process_trains_on_the_pairs_of_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two scores that differ by rounding the other one is the lower here."""
    scores = pd.DataFrame({"pair_id": [f"id{i}" for i in range(6)], "ln_ches": [0.0, 1e-9, 5.0, 5.0, 5.0, 5.0]})
    of_first = scores.assign(ln_ches=[1e-9, 0.0, 5.0, 5.0, 5.0, 5.0]).sort_values("ln_ches").head(1)
    monkeypatch.setattr(pair_filter, "_ches", lambda *_: scores)
    assert kept(FilterConfig("ln_ches", 0.17), ROWS)[0] == ["id0"]
    monkeypatch.setattr(pair_filter, "everyones", lambda own: [of_first, own])
    assert kept(FilterConfig("ln_ches", 0.17), ROWS)[0] == ["id1"]


def test_the_scores_are_those_that_dpo_score_gives(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model(2)
    rows = [{**row, "pair_id": make_pair_id(**row)} for row in make_pairs(8)]
    policy = SimpleNamespace(model=model, tokenizer=tokenizer, device="cpu")
    limits = (64, "keep_start")
    found, facts = keep_pairs(FilterConfig("ln_ches", 0.25), policy, rows, limits, say=lambda _: None)
    scored = score_pairs(
        model, PairTokens.of(rows, tokenizer, *limits), step=0, hidden=True, shared_prefix="off", progress=False
    ).ches
    assert scored is not None
    lowest = scored.nsmallest(2, "ln_ches")
    assert {row["pair_id"] for row in found} == set(lowest["pair_id"])
    assert facts["highest_kept"] == pytest.approx(lowest["ln_ches"].iloc[-1], rel=1e-4)
