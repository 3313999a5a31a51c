"""Why a preference loss and the perplexities part: exact decompositions, checks, narrative. Reads records, no torch."""

from __future__ import annotations

from dpo_diag.diagnosis.explain import explain

__all__ = ["explain"]
