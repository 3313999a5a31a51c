"""The only place that draws: one HTML file about a run or two, a W&B report; from records and explanation. No torch."""

from __future__ import annotations

from dpo_diag.report.run_page import write_report
from dpo_diag.report.two_runs_page import write_two_runs

__all__ = ["write_report", "write_two_runs"]
