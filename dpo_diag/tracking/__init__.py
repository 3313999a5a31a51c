"""Mirrors of the records in trackers: W&B, MLflow, SwanLab, TensorBoard, trackio, a webhook or a plugin's, live or
later. The records stay the truth. No torch.

    session = Session(["wandb", "mlflow"], folder, project="dpo_diag", mode="offline")
    places = session.start(config, run_name)    # note them in run.json
    session.log(step, {metric_name("eval", "ppl_seq_mean/chosen"): 1.77})
    session.send_rest(load_run(folder))
    session.close("finished")

Every tracker warns once when its service fails, and never stops or holds a run.
"""

from __future__ import annotations

from dpo_diag.tracking.base import TRACKERS, Tracker, TrackerOptions, metric_name, unique_name
from dpo_diag.tracking.findings import Findings, findings_of
from dpo_diag.tracking.live_alerts import LiveAlerts
from dpo_diag.tracking.mirror import mirror
from dpo_diag.tracking.outputs_table import outputs_table
from dpo_diag.tracking.safe import SafeTracker, make_tracker
from dpo_diag.tracking.session import Session, is_sent, kinds_of, live_kinds

__all__ = [
    "TRACKERS",
    "Findings",
    "LiveAlerts",
    "SafeTracker",
    "Session",
    "Tracker",
    "TrackerOptions",
    "findings_of",
    "is_sent",
    "kinds_of",
    "live_kinds",
    "make_tracker",
    "metric_name",
    "mirror",
    "outputs_table",
    "unique_name",
]
