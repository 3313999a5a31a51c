"""Thresholds of the explanation: conf/explanation/default.yaml is the one place that names, sets and justifies them.

The checks' thresholds stand in conf/checks; a configuration holds both together, and `explanation_thresholds` parts
them. A name has a dot, as on the command line: the file's `verdict: {least_dlog: ...}` is `verdict.least_dlog`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from dpo_diag.config import conf_dir
from dpo_diag.errors import DiagError


def explanation_thresholds(overrides: Mapping[str, Any] | None = None) -> tuple[dict[str, float], dict[str, Any]]:
    """(this explanation's thresholds by dotted name, the overrides that are none of them: the checks').

    Args:
        overrides: by dotted name, or nested as a composed configuration holds them; None for the defaults.

    Raises:
        DiagError: a dotted name that does not exist (the nearest is offered), or not a number.
    """
    file = conf_dir() / "explanation" / "default.yaml"
    values = {k: float(v) for k, v in _flat(OmegaConf.to_container(OmegaConf.load(file))).items()}
    rest: dict[str, Any] = {}
    for name, value in _flat(overrides or {}).items():
        if name not in values and "." not in name:
            rest[name] = value
            continue
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1, cutoff=0.4)
            raise DiagError(
                "unknown threshold", where="checks", got=name,
                expected=f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(values))}",
                hint="see conf/explanation/default.yaml and conf/checks/default.yaml", usage=True,
            )  # fmt: skip
        try:
            values[name] = float(value)
        except (TypeError, ValueError) as error:
            raise DiagError("a threshold is a number", where=f"checks.{name}", got=value, usage=True) from error
    return values, rest


def _flat(document: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
