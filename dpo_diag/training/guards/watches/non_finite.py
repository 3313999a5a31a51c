"""NaN and infinity: in the loss, in log-probs beside a finite loss, in the gradient.

TRL's log hides a loss that is not finite (`logging_nan_inf_filter` puts the average of earlier losses in its place).
"""

from __future__ import annotations

import math

from dpo_diag.text import some
from dpo_diag.training.guards.watch import WATCHES, Said, Step, Watch

NAMED = 3
"""Pairs that the message names; its evidence holds all."""


def _bad_ids(step: Step) -> list[str]:
    rows = step.rows()
    return [row.pair_id for row in rows if row.bad] or [row.pair_id for row in rows]


def _named(ids: list[str]) -> str:
    """ "; pairs a, b, c and 1 more"; "" where none is known."""
    return f"; {'pair' if len(ids) == 1 else 'pairs'} {some(ids, NAMED)}" if ids else ""


class NonFiniteLoss(Watch):
    """The loss of a micro-batch is NaN or infinite."""

    code, dumps = "non_finite_loss", True

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        if step.bad_loss is None:
            return None
        rows = f"; {step.n_bad_rows} of {step.n_rows} rows have non-finite log-probs" if step.n_rows else ""
        ids = _bad_ids(step)
        evidence = {"loss": step.bad_loss, "pair_ids": ids}
        return Said(f"loss is {step.bad_loss} in step {step.step}{rows}{_named(ids)}", evidence)


class NonFiniteLogp(Watch):
    """Log-probs are not finite, while the loss is."""

    code, dumps = "non_finite_logp", True

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        if step.bad_loss is not None or not step.n_bad_rows:
            return None
        bad = _bad_ids(step)
        return Said(
            f"the log-probs of {step.n_bad_rows} of {step.n_rows} rows are not finite in step {step.step}, the loss is "
            f"{step.loss:.4g}{_named(bad)}",
            {"loss": step.loss, "pair_ids": bad},
        )


class NonFiniteGrad(Watch):
    """The gradient is not finite, while loss and log-probs are. Under a gradient scaler that is how it finds its scale,
    and no fault."""

    code, dumps = "non_finite_grad", True

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        norm = step.grad_norm
        if norm is None or math.isfinite(norm) or step.overflows or step.bad_loss is not None or step.n_bad_rows:
            return None
        ids = _bad_ids(step)
        return Said(
            f"the gradient norm is {norm} in step {step.step}, the loss is {step.loss:.4g}: no weight survives such an "
            f"update{_named(ids)}",
            {"grad_norm": norm, "loss": step.loss, "pair_ids": ids},
        )


for watch in (NonFiniteLoss, NonFiniteLogp, NonFiniteGrad):
    WATCHES.add(watch.code, watch)
