"""Mirrors of the records in a tracker: W&B, trackio or a plugin's, live or later. The records stay the truth. No torch.

    tracker = make_tracker("wandb", project="dpo_diag", mode="offline")
    where = tracker.start(config, run_name, folder)    # note it in run.json
    tracker.log(step, {metric_name("eval", "ppl_seq_mean/chosen"): 1.77})
    tracker.log_outputs(run.outputs)
    tracker.finish()

`make_tracker` gives a tracker that warns once when its service fails and never stops a run.
"""

from __future__ import annotations

from dpo_diag.tracking.base import TRACKERS, Tracker, TrackerOptions, metric_name, unique_name
from dpo_diag.tracking.mirror import mirror
from dpo_diag.tracking.outputs_table import outputs_table
from dpo_diag.tracking.safe import SafeTracker, make_tracker, safe

__all__ = [
    "TRACKERS",
    "SafeTracker",
    "Tracker",
    "TrackerOptions",
    "make_tracker",
    "metric_name",
    "mirror",
    "outputs_table",
    "safe",
    "unique_name",
]
