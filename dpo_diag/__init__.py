"""Why did the DPO loss fall while perplexity rose, and did the model get better?

Importing this package imports neither torch nor transformers nor trl, and pandas only when a run is opened: what reads
records must start fast and run anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_diag.errors import DiagError
    from dpo_diag.frames import Run, Runs, load_run, load_runs
    from dpo_diag.records import RunWriter
    from dpo_diag.training.probe import Probe

__version__ = "0.1.0"

__all__ = ["DiagError", "Probe", "Run", "RunWriter", "Runs", "__version__", "load_run", "load_runs"]


def __getattr__(name: str) -> Any:
    # `dpo-diag --help` imports this package too, and must not wait for pandas.
    if name == "Probe":  # it needs torch, which reading records does not
        from importlib import import_module

        return import_module("dpo_diag.training.probe").Probe
    if name in __all__:
        from dpo_diag import errors, frames, records

        home = {"DiagError": errors, "RunWriter": records}.get(name, frames)
        return getattr(home, name)
    raise AttributeError(f"module 'dpo_diag' has no attribute {name!r}")
