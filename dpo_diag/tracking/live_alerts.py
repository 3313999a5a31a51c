"""Alerts of a training whose trackers are its own: to the webhook that the environment names, and into whatever run the
training's own code holds open in this process (transformers' `report_to`, a script's `wandb.init`)."""

from __future__ import annotations

import os
from pathlib import Path

from dpo_diag.tracking.base import TRACKERS
from dpo_diag.tracking.safe import SafeTracker, make_tracker
from dpo_diag.tracking.webhook import is_wanted


class LiveAlerts:
    """Call it with each alert; nothing is opened before the first, no run of the user's is ever closed, and whatever
    fails warns once and holds nothing.

    Args:
        folder: the run folder, as which the webhook knows the run.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._trackers: dict[str, SafeTracker] | None = None

    def __call__(self, step: int, title: str, text: str, level: str = "warn") -> None:
        if self._trackers is None:
            self._trackers = {kind: make_tracker(kind) for kind in TRACKERS}
            if is_wanted():
                self._trackers["webhook"].start({}, self.folder.name, self.folder)
        for tracker in self._trackers.values():
            if tracker.adopt():
                tracker.alert(step, title, text, level)

    def close(self) -> None:
        """Let its threads end when what was sent has gone out."""
        for tracker in (self._trackers or {}).values():
            tracker.let_go()
        self._trackers = None
