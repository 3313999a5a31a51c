"""Losses that couple the pairs of a batch, by sorting them or by a running mean: they have no value per pair."""

from __future__ import annotations

from dpo_diag.losses.registry import LOSSES, Loss, no_floor

for _name, _source in (
    ("bco_pair", "BCO, arXiv 2404.04656: a running mean of rewards"),
    ("aot", "AOT, arXiv 2406.05882: log-ratios sorted over the batch"),
    ("aot_unpaired", "AOT, arXiv 2406.05882: each side sorted over the batch"),
):
    LOSSES.add(_name, Loss(None, _source, in_trl=True, floor=no_floor))
