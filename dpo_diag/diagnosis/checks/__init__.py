"""Checks: each speaks, stays silent, or says why it cannot apply. One file a check, and all about it in that file.

A module dvgNNN_*.py of this folder is a check and registers itself; `shared/` holds what several of them use. A check
from elsewhere registers the same way, from a plugin (see `dpo_diag.registry`). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.diagnosis.checks.shared.advice import Situation
from dpo_diag.diagnosis.checks.shared.check import (
    CHECKS,
    OUTCOMES,
    SEVERITIES,
    Check,
    Missing,
    Outcome,
    cannot_tell,
    silent,
    speaks,
)
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.thresholds import Thresholds, load_thresholds

__all__ = [
    "CHECKS", "OUTCOMES", "SEVERITIES", "Check", "CheckContext", "Example", "Missing", "Outcome", "all_checks",
    "cannot_tell", "check_thresholds", "register", "run_checks", "silent", "speaks",
]  # fmt: skip


def register(check: Check) -> Check:
    """Add a check to `CHECKS` under its code.

    Raises:
        DiagError: another check has this code.
    """
    return CHECKS.add(check.code, check)


def all_checks() -> list[Check]:
    """Every check, in the order of the codes."""
    return sorted(CHECKS.values(), key=lambda check: check.code)


def check_thresholds(overrides: Mapping[str, Any] | None = None) -> Thresholds:
    """`load_thresholds`, which then also knows those that plugins' checks bring along."""
    return load_thresholds(overrides, {k: v for check in CHECKS.values() for k, v in check.thresholds.items()})


def run_checks(context: CheckContext, thresholds: Thresholds | None = None) -> list[dict[str, Any]]:
    """Every check on one run, in the order of their codes.

    Args:
        thresholds: every threshold by name; None for the defaults.

    Returns: one dict a check with code, title, outcome, reason, severity, evidence, try, sources (strict JSON types).
    """
    values = check_thresholds() if thresholds is None else thresholds
    findings = [context.finding(check.code, values) for check in all_checks()]
    situation = Situation.of(context, findings, values)
    for finding in findings:
        if finding["outcome"] == "speaks":
            finding["try"] = CHECKS[finding["code"]].advise(situation, values, finding["try"])
    return findings
