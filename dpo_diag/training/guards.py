"""Live guards: what cannot wait for the analysis. They write alerts; they never stop a run unless asked to."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median
from typing import Any

from dpo_diag.config import GUARDS
from dpo_diag.errors import DiagError
from dpo_diag.thresholds import load_thresholds
from dpo_diag.training.batch import Batch

Alert = Callable[[str, str, Mapping[str, Any]], None]
"""(code, message, evidence)."""


class Guards:
    """Watches training micro-batches.

    - `non_finite_loss`: the loss is NaN or infinite. TRL's log hides it (`logging_nan_inf_filter` puts the average of
      earlier losses in its place), and NaN log-probs beside a finite loss are as bad: `non_finite_logp`.
    - `loss_spike`: the loss of an optimizer step is above median + `spike_mads` times the median absolute deviation of
      the last `spike_window` steps (robust: earlier spikes do not raise the bar), and at least `spike_min` above it.
      DVG016 asks more of a spike, since it sees what comes after: it must stand above the rows on both sides, with the
      trend between them taken out. Here a jump that stays is a spike too, and is reported at once.

    - `reference_mismatch`: the policy does not equal its reference before the first step, where it must (see
      `reference_proof`).

    Args:
        alert: called with each alert, at most `max_alerts` times per code.
        stop_on: codes that `should_stop` reports; empty by default.
        thresholds: overrides of `guards.` in conf/checks/default.yaml, by dotted name or nested; others are allowed.

    Raises:
        DiagError: an unknown code or threshold.
    """

    def __init__(
        self, alert: Alert, *, stop_on: Iterable[str] = (), thresholds: Mapping[str, Any] | None = None
    ) -> None:
        self._alert, self._stop_on = alert, frozenset(stop_on)
        unknown = sorted(self._stop_on - set(GUARDS))
        if unknown:
            raise DiagError("unknown guard", where="stop_on", got=unknown, expected=f"some of {', '.join(GUARDS)}")
        self.limits = self._limits = load_thresholds(thresholds)
        self._losses: deque[float] = deque(maxlen=int(self._limits["guards.spike_window"]))
        self._step: int | None = None
        self._current: list[float] = []
        self._counts: Counter[str] = Counter()
        self.should_stop = False

    def memory(self) -> dict[str, Any]:
        """What later verdicts rest on, as arrays and numbers: kept in a checkpoint, see `recall`."""
        counts = [*self._counts.items()]
        return {
            "losses": [*self._losses], "current": self._current, "step": -1 if self._step is None else self._step,
            "codes": [code for code, _ in counts], "counts": [n for _, n in counts],
        }  # fmt: skip

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on with what `memory` gave; nothing of it changes nothing."""
        if memory:
            self._losses.clear()
            self._losses.extend(float(v) for v in memory["losses"])
            self._current = [float(v) for v in memory["current"]]
            self._step = None if int(memory["step"]) < 0 else int(memory["step"])
            self._counts = Counter({str(c): int(n) for c, n in zip(memory["codes"], memory["counts"], strict=True)})

    def _speak(self, code: str, message: str, evidence: Mapping[str, Any]) -> None:
        self._counts[code] += 1
        self.should_stop = self.should_stop or code in self._stop_on
        if self._counts[code] <= self._limits["guards.max_alerts"]:
            self._alert(code, message, evidence)

    def reference(self, message: str, evidence: Mapping[str, Any], *, main: bool) -> None:
        """The policy is not its reference; every rank calls it, the main one writes."""
        if main:
            self._speak("reference_mismatch", message, {"step": 0, **evidence})
        self.should_stop = self.should_stop or "reference_mismatch" in self._stop_on

    def batch(self, batch: Batch, step: int) -> None:
        """Judge one training micro-batch of optimizer step `step`."""
        bad = batch.bad_rows()
        pair_ids = [p for p, b in zip(batch.pair_ids, bad, strict=True) if b]
        if not math.isfinite(batch.loss):
            self._speak(
                "non_finite_loss",
                f"loss is {batch.loss} in step {step}; {len(pair_ids)} of {len(batch)} rows have non-finite log-probs",
                {"loss": batch.loss, "pair_ids": pair_ids or batch.pair_ids, "step": step},
            )
        elif pair_ids:
            self._speak(
                "non_finite_logp",
                f"the log-probs of {len(pair_ids)} of {len(batch)} rows are not finite in step {step}, the loss is "
                f"{batch.loss:.4g}",
                {"loss": batch.loss, "pair_ids": pair_ids, "step": step},
            )
        self._take(batch.loss, step)

    def logged(self, loss: float, step: int) -> None:
        """Judge a loss of which only the trainer's log tells."""
        if not math.isfinite(loss):
            self._speak("non_finite_loss", f"loss is {loss} in the log of step {step}", {"loss": loss, "step": step})
        self._take(loss, step)

    def _take(self, loss: float, step: int) -> None:
        if step != self._step:
            self.end()
            self._step = step
        if math.isfinite(loss):
            self._current.append(loss)

    def end(self) -> None:
        """Judge the step that has ended (it may have had several batches) against those before it."""
        if not self._current:
            return
        loss, step = fmean(self._current), self._step
        self._current = []
        if len(self._losses) >= self._limits["guards.spike_least_steps"]:
            values = list(self._losses)
            middle = median(values)
            mad = median(abs(value - middle) for value in values)
            bound = middle + max(self._limits["guards.spike_mads"] * mad, self._limits["guards.spike_min"])
            if loss > bound:
                self._speak(
                    "loss_spike",
                    f"loss {loss:.4g} in step {step}: the last {len(values)} steps have median {middle:.4g} and median "
                    f"absolute deviation {mad:.2g}, the bound is {bound:.4g}",
                    {"loss": loss, "step": step, "median": middle, "mad": mad, "bound": bound},
                )
        self._losses.append(loss)
