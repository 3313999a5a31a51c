"""Why a preference loss and the perplexities part: exact decompositions, checks, narrative. Reads records, no torch.

What explains is imported when it is asked for: printing an explanation that stands already needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_diag.diagnosis.explanation import Explanation, explain, explain_run

__all__ = ["Explanation", "explain", "explain_run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dpo_diag.diagnosis import explanation

        return getattr(explanation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
