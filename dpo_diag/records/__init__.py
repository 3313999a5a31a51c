"""The ground floor: the run folder, its schemas, writing and reading it, the quantities derived from it. No torch.

What writes and what hashes is imported when it is asked for: who opens a run waits for neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpo_diag.records.reader import Run, load_run

if TYPE_CHECKING:
    from dpo_diag.records.pair_id import make_pair_id
    from dpo_diag.records.writer import RunWriter

__all__ = ["Run", "RunWriter", "load_run", "make_pair_id"]


def __getattr__(name: str) -> Any:
    if name == "RunWriter":
        from dpo_diag.records.writer import RunWriter

        return RunWriter
    if name == "make_pair_id":
        from dpo_diag.records.pair_id import make_pair_id

        return make_pair_id
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
