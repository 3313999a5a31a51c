"""Live guards: what cannot wait for the analysis. `watches/` holds one file per thing that is watched."""

from dpo_diag.training.guards.guards import Alert, Guards

__all__ = ["Alert", "Guards"]
