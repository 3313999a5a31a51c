"""The only place that draws: one HTML file, and a W&B report, from a run's records and explanation. No torch."""

from __future__ import annotations

from dpo_diag.report.run_page import write_report

__all__ = ["write_report"]
