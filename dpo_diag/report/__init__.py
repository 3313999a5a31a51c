"""The only place that draws: one HTML file, and a W&B report, from a run's records and explanation. No torch."""

from __future__ import annotations

from dpo_diag.report.html import write_report

__all__ = ["write_report"]
