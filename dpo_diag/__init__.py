"""Why did the DPO loss fall while perplexity rose, and did the model get better?

Importing this package imports neither torch nor transformers nor trl, and pandas only when a run is opened: what reads
records must start fast and run anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_diag.records import Run, RunWriter, load_run, load_runs

__version__ = "0.1.0"

__all__ = ["Run", "RunWriter", "__version__", "load_run", "load_runs"]


def __getattr__(name: str) -> Any:
    # `dpo-diag --help` imports this package too, and must not wait for pandas.
    if name in __all__:
        from dpo_diag import records

        return getattr(records, name)
    raise AttributeError(f"module 'dpo_diag' has no attribute {name!r}")
