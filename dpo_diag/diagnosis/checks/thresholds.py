"""Thresholds: conf/checks/default.yaml is the one place that names, sets and justifies them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from dpo_diag.config import conf_dir
from dpo_diag.errors import DiagError


def load_thresholds(overrides: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The defaults with `overrides` on top, as floats.

    Raises:
        DiagError: an override names no threshold (the nearest name is offered) or is not a number.
    """
    file = conf_dir() / "checks" / "default.yaml"
    content = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(content, dict):
        raise DiagError("not a mapping of names to numbers", where=file, hint="restore it from the package")
    values = {str(k): float(v) for k, v in content.items()}
    for name, value in (overrides or {}).items():
        if name not in values:
            near = difflib.get_close_matches(str(name), values, n=1, cutoff=0.4)
            raise DiagError(
                "unknown threshold",
                where="checks",
                got=name,
                expected=f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(values))}",
                hint="see conf/checks/default.yaml",
                usage=True,
            )
        try:
            values[name] = float(value)
        except (TypeError, ValueError) as error:
            raise DiagError("a threshold is a number", where=f"checks.{name}", got=value, usage=True) from error
    return values
