"""Why a preference loss and the perplexities part: exact decompositions, checks, narrative. Reads records, no torch."""

from __future__ import annotations

from dpo_diag.diagnosis.explain import Explanation, explain, explain_run

__all__ = ["Explanation", "explain", "explain_run"]
