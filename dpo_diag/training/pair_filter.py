"""Training on a part of the pairs: those whose two answers the model tells apart best before it is trained.

ln-CHES (Razin et al. 2024, arXiv 2410.08847; `inference.scoring` computes it) is the higher the more alike the hidden
states of chosen and rejected are, and the more chosen is expected to fall. The paper keeps the pairs with the lowest
score. A part is also fewer pairs: `random` keeps as many, so that the two effects can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpo_diag.config import FilterConfig
from dpo_diag.data.pairs import Row
from dpo_diag.errors import DiagError
from dpo_diag.models.processes import everyones
from dpo_diag.records.schemas import CHES, TRAIN_SPLIT
from dpo_diag.records.side_tables import write_side_table
from dpo_diag.stats import SEED

if TYPE_CHECKING:
    from dpo_diag.models.policy import Policy


def keep_pairs(
    config: FilterConfig, policy: Policy, rows: list[Row], limits: tuple[int | None, str], *,
    say: Callable[[str], None], folder: Path | None = None,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """The rows that are trained on, in their order, and what run.json says of it; all and {} where nothing is filtered.

    Args:
        policy: the model before training.
        rows: pairs with a `pair_id`.
        limits: the training's max_length and truncation_mode.
        folder: run folder that gets every pair's score (ches.parquet, split train); None for none.

    Raises:
        DiagError: no pair is left.
    """
    if config.kind == "none":
        return rows, {}
    ids = [str(row["pair_id"]) for row in rows]
    distinct = sorted(set(ids))  # a pair that stands twice stays twice, or goes
    count = round(config.keep * len(distinct))
    if count < 1:
        raise DiagError(
            "the filter leaves no pair", where="filter.keep", got=config.keep,
            expected=f"more: there are {len(distinct)}",
        )  # fmt: skip
    facts: dict[str, Any] = {"kind": config.kind, "keep": config.keep}
    if config.kind == "random":
        kept = set(np.random.default_rng(SEED).permutation(distinct)[:count])
    else:
        say(f"ln-CHES of {len(rows)} training pairs")
        scores = _ches(policy, rows, limits)
        if folder is not None:
            write_side_table(folder, CHES, scores.assign(split=TRAIN_SPLIT))
        ranked = scores.drop_duplicates("pair_id").sort_values(["ln_ches", "pair_id"]).head(count)
        # Scores that are next to equal may stand in another order elsewhere: every process trains on the first one's.
        lowest = everyones(ranked[["pair_id", "ln_ches"]])[0]
        kept, facts["highest_kept"] = set(lowest["pair_id"]), float(lowest["ln_ches"].iloc[-1])
    left = [row for row, pair_id in zip(rows, ids, strict=True) if pair_id in kept]
    say(f"filter {config.kind}: {len(left)} of {len(rows)} training pairs are kept")
    return left, facts | {"kept": len(left), "of": len(rows)}


def _ches(policy: Policy, rows: list[Row], limits: tuple[int | None, str]) -> pd.DataFrame:
    """One row per pair that reaches the loss: pair_id, ches, ln_ches."""
    from dpo_diag.inference.scoring import PairTokens, score_pairs

    model: Any = policy.model
    model.to(policy.device)
    encoded = PairTokens.of(rows, policy.tokenizer, *limits)
    scores = score_pairs(model, encoded, step=0, tokens=False, hidden=True, progress=False)
    assert scores.ches is not None
    return scores.ches
