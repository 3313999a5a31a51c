"""Runs as a pandas user meets them: the record tables, and what is derived from them, as frames with right types.

The reader of the records (`dpo_diag.records`) knows the tables alone; here stands what needs the analysis too: values
by pair and step, the explanation, tokens with their texts, several runs beside each other. Opening a run imports none
of it.
"""

from dpo_diag.frames.run import Run, load_run
from dpo_diag.frames.runs import Runs, load_runs

__all__ = ["Run", "Runs", "load_run", "load_runs"]
