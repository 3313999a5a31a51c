"""How far a policy lies from its reference on the data's own responses, where the KL was measured."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.logged import metric_rows
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step
from dpo_diag.records.metric_table import ALL_SIDES

WAYS = ("reverse", "forward")
"""KL(policy || reference), which DPO's β weighs, and KL(reference || policy)."""


def data_kl(rows: PairRows, split: str | None, from_step: Step | None, to_step: int | None) -> dict[str, Any]:
    """{side: {"reverse" | "forward": {"from", "to"}}}, nats per token, of a set at two steps; {} where it was not
    measured at the later one. The reference lies 0 from itself; an end that was not measured is None."""
    found: dict[str, Any] = {}
    for side in ALL_SIDES if split is not None else ():
        ends = {}
        for way in WAYS:
            known = metric_rows(rows, f"kl_{way}/{side}", split)
            values = dict(zip(known["step"].astype(int), known["value"].astype(float), strict=True))
            start = 0.0 if from_step == REFERENCE else None if from_step is None else values.get(int(from_step))
            if to_step is not None and to_step in values:
                ends[way] = {"from": start, "to": values[to_step]}
        if ends:
            found[side] = ends
    return found
