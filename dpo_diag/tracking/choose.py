"""From the config group `tracking` to a tracker."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_diag.errors import DiagError
from dpo_diag.tracking.base import NoTracker
from dpo_diag.tracking.safe import SafeTracker, safe
from dpo_diag.tracking.trackio_tracker import TrackioTracker
from dpo_diag.tracking.wandb_tracker import WandbTracker

KINDS = ("none", "wandb", "trackio")


def make_tracker(
    kind: str = "none",
    *,
    project: str = "dpo_diag",
    mode: str = "offline",
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> SafeTracker:
    """A tracker that cannot stop a run; the arguments are those of conf/tracking (all but `name`, see `start`).

    Raises:
        DiagError: unknown kind.
    """
    if kind == "none":
        return safe(NoTracker())
    if kind == "wandb":
        return safe(WandbTracker(project, mode=mode, entity=entity, group=group, tags=tags))
    if kind == "trackio":
        return safe(TrackioTracker(project, group=group))
    raise DiagError("unknown tracker", where="tracking.kind", got=kind, expected=f"one of {KINDS}", usage=True)
