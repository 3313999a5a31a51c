"""Live guards: what cannot wait for the analysis. They write alerts; they never stop a run unless asked to."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dpo_diag.training.batch import Batch

Say = Callable[[str, str, Mapping[str, Any]], None]
"""(code, message, evidence)."""

MAX_PER_CODE = 20


class Guards:
    """Watches training micro-batches.

    - `non_finite_loss`: the loss is NaN or infinite. TRL's log hides it (`logging_nan_inf_filter` puts the average of
      earlier losses in its place), and NaN log-probs beside a finite loss are as bad: `non_finite_logp`.
    - `loss_spike`: the loss of an optimizer step is above median + `spike_mads` times the median absolute deviation of
      the last `window` steps (robust: earlier spikes do not raise the bar), and at least `spike_min` above it.

    Args:
        say: called with each alert.
        stop_on: codes that `should_stop` reports; empty by default.
        spike_mads, spike_min, window: see above; a window needs at least 20 steps to speak.
    """

    def __init__(
        self,
        say: Say,
        *,
        stop_on: Iterable[str] = (),
        spike_mads: float = 10.0,
        spike_min: float = 0.1,
        window: int = 50,
    ) -> None:
        self._say, self._stop_on = say, frozenset(stop_on)
        self._mads, self._min = spike_mads, spike_min
        self._losses: deque[float] = deque(maxlen=window)
        self._step: int | None = None
        self._current: list[float] = []
        self._counts: Counter[str] = Counter()
        self.should_stop = False

    def _alert(self, code: str, message: str, evidence: Mapping[str, Any]) -> None:
        self._counts[code] += 1
        self.should_stop = self.should_stop or code in self._stop_on
        if self._counts[code] <= MAX_PER_CODE:
            self._say(code, message, evidence)

    def batch(self, batch: Batch, step: int) -> None:
        """Look at one training micro-batch of optimizer step `step`."""
        bad = batch.bad_rows()
        pair_ids = [p for p, b in zip(batch.pair_ids, bad, strict=True) if b]
        if not math.isfinite(batch.loss):
            self._alert(
                "non_finite_loss",
                f"loss is {batch.loss} in step {step}; {len(pair_ids)} of {len(batch)} rows have non-finite log-probs",
                {"loss": batch.loss, "pair_ids": pair_ids or batch.pair_ids, "step": step},
            )
        elif pair_ids:
            self._alert(
                "non_finite_logp",
                f"the log-probs of {len(pair_ids)} of {len(batch)} rows are not finite in step {step}, the loss is "
                f"{batch.loss:.4g}",
                {"loss": batch.loss, "pair_ids": pair_ids, "step": step},
            )
        if step != self._step:
            self.end()
            self._step = step
        if math.isfinite(batch.loss):
            self._current.append(batch.loss)

    def end(self) -> None:
        """Judge the step that has ended (it may have had several batches) against those before it."""
        if not self._current:
            return
        loss, step = float(np.mean(self._current)), self._step
        self._current = []
        if len(self._losses) >= 20:
            values = np.array(self._losses)
            median = float(np.median(values))
            mad = float(np.median(np.abs(values - median)))
            bound = median + max(self._mads * mad, self._min)
            if loss > bound:
                self._alert(
                    "loss_spike",
                    f"loss {loss:.4g} in step {step}: the last {len(values)} steps have median {median:.4g} and median "
                    f"absolute deviation {mad:.2g}, the bound is {bound:.4g}",
                    {"loss": loss, "step": step, "median": median, "mad": mad, "bound": bound},
                )
        self._losses.append(loss)
