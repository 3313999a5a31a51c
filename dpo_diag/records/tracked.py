"""Where trackers show a run, as run.json's `tracking` says it: one entry per kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tracked_places(tracking: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """kind -> what the tracker's start returned; {} where nothing tracked the run.

    Runs written before several trackers were possible hold the entry itself, with its `kind` inside.
    """
    if not tracking:
        return {}
    if isinstance(tracking.get("kind"), str):
        return {tracking["kind"]: dict(tracking)}
    return {str(kind): dict(place) for kind, place in tracking.items() if isinstance(place, Mapping)}
