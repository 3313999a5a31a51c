"""The ground floor: the run folder, its schemas, writing and reading it, the quantities derived from it. No torch."""

from __future__ import annotations

from dpo_diag.records.pair_id import make_pair_id
from dpo_diag.records.reader import Run, load_run, load_runs
from dpo_diag.records.writer import RunWriter

__all__ = ["Run", "RunWriter", "load_run", "load_runs", "make_pair_id"]
