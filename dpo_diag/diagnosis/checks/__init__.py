"""Checks: each speaks, stays silent, or says why it cannot apply. No torch."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.checks.base import OUTCOMES, SEVERITIES, Check, Missing, Outcome
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.table import CHECKS
from dpo_diag.thresholds import Thresholds, load_thresholds

__all__ = [
    "CHECKS", "OUTCOMES", "SEVERITIES", "Check", "CheckContext", "Missing", "Outcome", "run_checks",
]  # fmt: skip


def run_checks(context: CheckContext, thresholds: Thresholds | None = None) -> list[dict[str, Any]]:
    """Every check of the table on one run, in the order of their codes.

    Args:
        thresholds: every threshold by name; None for the defaults.

    Returns: one dict a check with code, title, outcome, reason, severity, evidence, try, sources (strict JSON types).
    """
    values = load_thresholds() if thresholds is None else thresholds
    return [check.run(context, values) for check in CHECKS]
