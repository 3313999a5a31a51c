"""The policy does not equal its reference before the first step, where it must: `training.reference_proof` looks."""

from __future__ import annotations

from dpo_diag.training.guards.watch import TELLS, WATCHES, Watch


class ReferenceMismatch(Watch):
    """Said by `Guards.reference`."""

    code, actions = "reference_mismatch", TELLS


WATCHES.add(ReferenceMismatch.code, ReferenceMismatch)
