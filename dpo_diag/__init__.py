"""Why did the DPO loss fall while perplexity rose, and did the model get better?

Importing this package imports neither torch nor transformers nor trl: what reads records must start
fast and run anywhere.
"""

from __future__ import annotations

from dpo_diag.records import Run, RunWriter, load_run, load_runs

__version__ = "0.1.0"

__all__ = ["Run", "RunWriter", "__version__", "load_run", "load_runs"]
