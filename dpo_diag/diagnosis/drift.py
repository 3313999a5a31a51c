"""How far a policy lies from its reference on the data's own responses, where the KL was measured."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.records import Run
from dpo_diag.records.metric_table import ALL_SIDES

WAYS = ("reverse", "forward")
"""KL(policy || reference), which DPO's β weighs, and KL(reference || policy)."""


def data_kl(run: Run, split: str | None, from_step: Step | None, to_step: int | None) -> dict[str, Any]:
    """{side: {"reverse" | "forward": {"from", "to"}}}, nats per token, of a set at two steps; {} where it was not
    measured at the later one. The reference lies 0 from itself; an end that was not measured is None."""
    history, found = run.history, dict[str, Any]()
    history = history.loc[(history["split"] == split) & history["name"].astype(str).str.startswith("kl_")]
    for side in ALL_SIDES:
        ends = {}
        for way in WAYS:
            known = history.loc[history["name"] == f"kl_{way}/{side}"]
            values = dict(zip(known["step"].astype(int), known["value"].astype(float), strict=True))
            start = 0.0 if from_step == REFERENCE else None if from_step is None else values.get(int(from_step))
            if to_step is not None and to_step in values:
                ends[way] = {"from": start, "to": values[to_step]}
        if ends:
            found[side] = ends
    return found
