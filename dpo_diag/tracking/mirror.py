"""Replay a run's records into trackers: for runs that were not tracked live, scored or imported, and for what they have
more since they were tracked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.records import Run
from dpo_diag.records.checksums import read_yaml
from dpo_diag.text import plain
from dpo_diag.thresholds import defaults
from dpo_diag.tracking.base import flat, unique_name
from dpo_diag.tracking.session import Session

NOT_CONFIG = ("packages", "tracking", "checks")
FIRST = ("loss", "trainer", "data", "model", "peft", "seed", "name")
"""Groups of the config that people compare runs by."""


def mirror(run: Run, session: Session, name: str | None = None) -> dict[str, dict[str, Any]]:
    """Send history (in step order, one call per step), outputs, findings, and the end; returns what `start` returned.

    Args:
        name: the run's name there; None takes the one it has there, or makes a unique one from the folder.

    The config is the composed Hydra config where the run has one, with run.json beside it under `run`.
    """
    known = next((t.options.earlier.get("name") for t in session.trackers.values() if t.options.earlier), None)
    session.start(run_config(run), name or known or unique_name(run.path))
    session.send_rest(run)
    session.close(run.info.status or "finished")
    return session.places


def run_config(run: Run) -> dict[str, Any]:
    """What a tracker shows as the config: .hydra/config.yaml, and run.json under `run` (without package versions)."""
    config: dict[str, Any] = {}
    file = run.path / ".hydra" / "config.yaml"
    if file.is_file():
        loaded = read_yaml(file)
        config = loaded if isinstance(loaded, dict) else {}
    meta = {k: v for k, v in run.meta.items() if k not in NOT_CONFIG}
    return {**shown_config(config), "run": plain(meta)}


def shown_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config in the order in which people read it: what runs are compared by first; of the thresholds of
    checks only those that differ from the defaults."""
    ordered = {key: config[key] for key in FIRST if key in config}
    ordered |= {key: value for key, value in config.items() if key not in ordered and key not in NOT_CONFIG}
    if "trainer" in ordered and isinstance(ordered["trainer"], Mapping) and "learning_rate" in ordered["trainer"]:
        ordered["trainer"] = {"learning_rate": ordered["trainer"]["learning_rate"], **ordered["trainer"]}
    if isinstance(config.get("loss"), Mapping) and "beta" in config["loss"]:
        ordered["loss"] = {"beta": config["loss"]["beta"], **config["loss"]}
    usual = defaults()
    checks = config.get("checks")
    other = {k: v for k, v in flat(checks if isinstance(checks, Mapping) else {}).items() if usual.get(k) != v}
    return {**ordered, "checks": other} if other else ordered
