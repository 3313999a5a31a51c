"""Small runs, built by hand: what a trainer or an importer would have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag import Run, RunWriter, load_run

SIGMOID = {"types": ["sigmoid"], "beta": 0.1}


def pair_rows(
    step: int,
    chosen: Sequence[float],
    rejected: Sequence[float] | None,
    n: Sequence[int] | int = 10,
    *,
    split: str = "eval",
    role: str = "policy",
    ids: Sequence[str] | None = None,
    **columns: Any,
) -> pd.DataFrame:
    """Pair rows of one step from sums; `n` counts both sides (None: unknown)."""
    names = list(ids) if ids is not None else [f"p{i}" for i in range(len(chosen))]
    parts = []
    for side, sums in (("chosen", chosen), ("rejected", rejected)):
        if sums is None:
            continue
        part = pd.DataFrame({"step": step, "split": split, "role": role, "pair_id": names, "side": side})
        part["sum_logp"] = list(sums)
        if n is not None:
            part["n_tokens"] = n
        parts.append(part.assign(**columns))
    return pd.concat(parts, ignore_index=True)


def build_run(
    path: Path,
    steps: Mapping[int, tuple[Sequence[float], Sequence[float] | None]],
    *,
    n: Any = 10,
    reference: tuple[Sequence[float], Sequence[float] | None] | str | None = "first",
    loss: dict[str, Any] | None = SIGMOID,
    split: str = "eval",
    history: Sequence[dict[str, Any]] = (),
    outputs: Sequence[dict[str, Any]] = (),
    facts: Mapping[str, Any] = MappingProxyType({}),
    **columns: Any,
) -> Run:
    """A run with pair rows at `steps`; `reference`: its sums, "first" for those of the first step, None for none."""
    writer = RunWriter(path)
    first = min(steps)
    for step, (chosen, rejected) in steps.items():
        rows = pair_rows(step, chosen, rejected, n, split=split, **columns)
        if step == first and reference is not None:
            sums = steps[first] if reference == "first" else reference
            rows = pd.concat([rows, pair_rows(step, sums[0], sums[1], n, split=split, role="ref", **columns)])
        writer.write("pairs", rows, split=split)
    if history:
        writer.write("history", list(history))
    if outputs:
        writer.write("outputs", list(outputs))
    writer.update(loss=loss, **facts)
    writer.finish()
    return load_run(path)


def token_rows(
    step: int,
    pair: str,
    side: str,
    token_ids: Sequence[int],
    logp: Sequence[float],
    *,
    split: str = "eval",
    role: str = "policy",
    **columns: Any,
) -> pd.DataFrame:
    """Token rows of one response."""
    frame = pd.DataFrame(
        {
            "step": step, "split": split, "role": role, "pair_id": pair, "side": side,
            "position": np.arange(len(token_ids)), "token_id": list(token_ids), "logp": np.float32(logp),
        }
    )  # fmt: skip
    return frame.assign(**columns)


def build_token_run(
    path: Path,
    responses: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    logps: Mapping[int, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    end: int | None = 2,
    extra: Mapping[str, Any] | None = None,
) -> Run:
    """A run with token rows and the pair rows that they sum to; `logps`: step -> pair -> (chosen, rejected)."""
    writer = RunWriter(path)
    first = min(logps)
    for step, by_pair in logps.items():
        tokens, pairs = [], []
        for pair, values in by_pair.items():
            for side, ids, logp in zip(("chosen", "rejected"), responses[pair], values, strict=True):
                row = {"pair_id": pair, "side": side, "step": step, "split": "eval", "n_tokens": len(ids)}
                row |= {"sum_logp": float(np.float64(np.float32(logp)).sum())}
                for role in ("policy", "ref") if step == first else ("policy",):
                    tokens.append(token_rows(step, pair, side, ids, logp, role=role, **dict(extra or {})))
                    pairs.append({**row, "role": role})
        writer.write("tokens", pd.concat(tokens, ignore_index=True), split="eval")
        writer.write("pairs", pairs, split="eval")
    writer.update(loss=SIGMOID, tokenizer={"eos_token_id": end} if end is not None else {})
    writer.finish()
    return load_run(path)
