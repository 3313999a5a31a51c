"""One side's responses as arrays: the unit in which they are counted, and which of them can be measured at all.

Pairs count in response tokens. Where a source gives log-prob sums but no token counts (many public dumps), the UTF-8
bytes of the text stand in: every formula holds per byte as it does per token, and the result says `"unit": "byte"`.
Byte-level perplexities are smaller numbers (a token has about four bytes) and compare across tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.aligned import Selection
from dpo_diag.records import metrics

FloatArray = npt.NDArray[np.float64]
COUNTS = {"token": "n_tokens", "byte": "n_bytes"}


@dataclass(frozen=True)
class SideArrays:
    """sum_logp (nats) and counts of one side at both steps; only responses with finite numbers and a positive count.

    `keep` marks those rows of `Selection.pairs`; `excluded` counts the others by reason and names some.
    """

    side: str
    unit: str
    keep: npt.NDArray[np.bool_]
    sum_from: FloatArray
    n_from: FloatArray
    sum_to: FloatArray
    n_to: FloatArray
    excluded: dict[str, Any]

    @property
    def args(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        return self.sum_from, self.n_from, self.sum_to, self.n_to


def choose_unit(pairs: pd.DataFrame, sides: tuple[str, ...]) -> tuple[str | None, str | None]:
    """("token" | "byte", note) or (None, why nothing can be counted): the unit that covers more responses, tokens
    first where both cover all."""
    covered = {}
    for unit, column in COUNTS.items():
        covered[unit] = int(sum((pairs[f"{s}_{column}_0"].gt(0) & pairs[f"{s}_{column}_1"].gt(0)).sum() for s in sides))
    if not any(covered.values()):
        return None, "the records hold neither token counts nor bytes of the responses"
    if covered["token"] >= covered["byte"]:
        return "token", None
    lacking = "no token counts are recorded" if covered["token"] == 0 else "token counts are missing for some responses"
    return "byte", f"{lacking}: perplexities are per UTF-8 byte, not per token"


def side_arrays(selection: Selection, side: str, unit: str) -> SideArrays:
    """The side's measurable responses (shape (kept,) each); infinite, unknown and empty ones are counted and named."""
    pairs, column = selection.pairs, COUNTS[unit]
    s0, s1 = (pairs[f"{side}_sum_logp_{w}"].to_numpy(dtype=np.float64) for w in (0, 1))
    n0, n1 = (pairs[f"{side}_{column}_{w}"].to_numpy(dtype=np.float64) for w in (0, 1))
    infinite = np.isinf(s0) | np.isinf(s1)
    unknown = np.isnan(s0) | np.isnan(s1)
    uncounted = np.isnan(n0) | np.isnan(n1)
    empty = ~uncounted & ((n0 <= 0) | (n1 <= 0))
    keep = ~(infinite | unknown | uncounted | empty)
    excluded: dict[str, Any] = {}
    ids = pairs["pair_id"].astype(str).to_numpy()
    for name, mask in (("infinite", infinite), ("nan", unknown), ("no_count", uncounted), ("empty", empty)):
        if mask.any():
            excluded[name] = {"n": int(mask.sum()), "pair_ids": [str(i) for i in ids[mask][:20]]}
    return SideArrays(side, unit, keep, s0[keep], n0[keep], s1[keep], n1[keep], excluded)


def bits_per_byte(selection: Selection, side: str) -> dict[str, Any]:
    """{"from", "to", "delta"} over the responses with finite log-probs and known bytes, or {"not_applicable": why}."""
    arrays = side_arrays(selection, side, "byte")
    if not arrays.keep.any():
        return {"not_applicable": "no bytes of the responses are recorded"}
    start = metrics.bits_per_byte(arrays.sum_from, arrays.n_from)
    end = metrics.bits_per_byte(arrays.sum_to, arrays.n_to)
    return {"from": start, "to": end, "delta": end - start, "n_pairs": int(arrays.keep.sum())}
