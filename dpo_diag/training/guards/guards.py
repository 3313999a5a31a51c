"""All watches of one training: fed with its batches and steps, they write alerts and say what is to be done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dpo_diag.command_lines import line, override
from dpo_diag.config_guards import GuardsConfig
from dpo_diag.thresholds import load_thresholds
from dpo_diag.training.guards.answers import Answers
from dpo_diag.training.guards.watch import WATCHES, Evaluation, Row, Said, Step

if TYPE_CHECKING:
    from dpo_diag.training.batch import Batch

Alert = Callable[[str, str, Mapping[str, Any]], None]
"""(code, message, evidence)."""
Everyones = Callable[[Any], list[Any]]
"""What each process holds, by rank; every process calls it (`models.processes.everyones`)."""


class Losses(NamedTuple):
    """Of a micro-batch.

    Attributes:
        trained: the loss that is trained on.
        same, slope: see `watch.Step`.
    """

    trained: float
    same: float
    slope: float


@dataclass(frozen=True)
class Raised:
    """What a watch said, and what is to be done about it.

    Attributes:
        action: one of `answers.ACTIONS`.
        step: the optimizer step that it is about.
    """

    code: str
    action: str
    step: int
    message: str
    evidence: Mapping[str, Any]


class Guards:
    """Collects micro-batches, judges each optimizer step before its update.

    Args:
        alert: called with each alert, at most `max_alerts` times per code.
        stop_on: codes that end the run; short for an answer of "stop".
        thresholds: overrides of `guards.` in conf/checks/default.yaml, by dotted name or nested; others are allowed.
        answers: what is done where a code speaks; None: alerts only.

    Attributes:
        main: this process writes the alerts; all judge alike.
        dump: keeps the batch of a step (its number, the codes, its loss), and says where; None: nowhere.
        should_stop: a code has spoken that ends the run.
        stopped: the first that did; None: none.
        rate_steps: steps for which the learning rate is still scaled.
        skips: steps in a row that were left out; restores: how often a checkpoint was taken back; dumps: batches kept.

    Raises:
        DiagError: an unknown code or threshold.
    """

    def __init__(
        self, alert: Alert, *, stop_on: Iterable[str] = (), thresholds: Mapping[str, Any] | None = None,
        answers: Answers | None = None,
    ) -> None:  # fmt: skip
        self._alert = alert
        self.answers = answers or Answers.of(GuardsConfig(), stop_on)
        self.limits = self._limits = load_thresholds(thresholds)
        self.watches = {code: watch(self.limits) for code, watch in WATCHES.items()}
        self.main, self.should_stop = True, False
        self.stopped: Raised | None = None
        self.dump: Callable[[int, Sequence[str], float | None], str | None] | None = None
        self.rate_steps = self.skips = self.restores = self.dumps = 0
        self._step: int | None = None
        self._batches: list[tuple[Losses, list[Row]]] = []
        self._counts: Counter[str] = Counter()
        self._first: dict[str, dict[str, float]] = {}

    # ---- what a checkpoint keeps ----

    def memory(self) -> dict[str, Any]:
        """What later verdicts rest on, as arrays and numbers: kept in a checkpoint, see `recall`."""
        counts = [*self._counts.items()]
        own = {
            "codes": [code for code, _ in counts], "counts": [n for _, n in counts],
            "acts": [self.rate_steps, self.skips, self.restores, self.dumps],
        }  # fmt: skip
        own |= {f"first/{split}/{n}": v for split, values in self._first.items() for n, v in values.items()}
        return own | {f"{c}/{name}": v for c, watch in self.watches.items() for name, v in watch.memory().items()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on with what `memory` gave; nothing of it changes nothing."""
        if not memory:
            return
        self._counts = Counter({str(c): int(n) for c, n in zip(memory["codes"], memory["counts"], strict=True)})
        self.rate_steps, self.skips, self.restores, self.dumps = (int(n) for n in memory.get("acts", (0, 0, 0, 0)))
        for name, value in memory.items():
            if name.startswith("first/"):
                metric = next(n for n in _KEPT if name.endswith(f"/{n}"))  # a set's name may hold a slash, as these do
                self._first.setdefault(name[len("first/") : -len(metric) - 1], {})[metric] = float(value)
        for code, watch in self.watches.items():
            prefix = f"{code}/"
            watch.recall({name.removeprefix(prefix): v for name, v in memory.items() if name.startswith(prefix)})

    # ---- speaking ----

    def speak(self, code: str, said: Said, step: int, action: str | None = None) -> Raised:
        """Count it, decide what is done, write the alert."""
        asked, action = action is None, self.answers.to(code) if action is None else action
        self._counts[code] += 1
        self.should_stop = self.should_stop or action == "stop"
        done = {} if action == "warn" else {"action": action}
        evidence = {"step": step, **said.evidence, **done}
        tail = f"; {self.answers.told(action)} (guards.actions: {action})" if done and asked else ""
        again = f"; {said.again}" if said.again else ""
        most = int(self._limits["guards.max_alerts"])
        last = ""
        if self._counts[code] == most:
            last = f"; the last of {most} such alerts: what follows is not said"
            evidence["last_said"] = True
        if self.main and self._counts[code] <= most:
            self._alert(code, f"{said.message}{tail}{again}{last}", evidence)
        raised = Raised(code, action, step, said.message, evidence)
        if action == "stop" and self.stopped is None:
            self.stopped = raised
        return raised

    def reference(self, message: str, evidence: Mapping[str, Any], *, main: bool) -> None:
        """The policy is not its reference; every rank calls it, the main one writes."""
        self.main = main
        self.speak("reference_mismatch", Said(message, evidence), 0)

    # ---- judging ----

    def batch(self, batch: Batch, step: int, same: tuple[float, float] | None = None) -> None:
        """Take one training micro-batch of optimizer step `step`; a step that was left open is judged first.

        Args:
            same: `same_loss.same_loss` of it, where a schedule has moved coefficients.
        """
        if step != self._step:
            self.end()
            self._step = step
        loss, rows = batch.loss, _rows(batch)
        if batch.is_share and self._batches:
            before = self._batches.pop()
            loss, rows = before[0].trained + loss, before[1] + rows
        self._batches.append((Losses(loss, *(same or (loss, 1.0))), rows))

    def logged(self, loss: float, step: int, grad_norm: float | None = None) -> None:
        """Judge a step of which only the trainer's log tells; its update is made."""
        bad = None if math.isfinite(loss) else loss
        self._judge(Step(step, math.nan if bad is not None else loss, bad, grad_norm=grad_norm, of_log=True))

    def close(
        self, step: int, everyones: Everyones | None = None, *, grad_norm: float | None = None, overflows: bool = False,
        seconds: float | None = None, positions: int = 0, memory: tuple[float, float] | None = None,
    ) -> list[Raised]:  # fmt: skip
        """Judge optimizer step `step` before its update, by the batches of all processes; each of them must call it,
        and each gets the same. [] where nothing is wrong. Arguments: this process's, see `watch.Step`."""
        own, self._batches, self._step = self._batches, [], None
        rows = [row for _, of_batch in own for row in of_batch]
        gather: Everyones = everyones or (lambda value: [value])
        parts = [part for of_rank in gather([part for part, _ in own]) for part in of_rank]
        losses = [part.trained for part in parts]
        counts = gather((len(rows), sum(row.bad for row in rows)))
        machine = gather((seconds, positions, memory))
        times, full = [s for s, _, _ in machine if s is not None], [m for *_, m in machine if m is not None]
        seen = Step(
            step, _mean(losses), next((v for v in losses if not math.isfinite(v)), None),
            sum(n for n, _ in counts), sum(bad for _, bad in counts), grad_norm, overflows,
            max(times) if len(times) == len(machine) else None, sum(n for _, n, _ in machine),
            max(full, key=lambda m: m[0] / m[1], default=None),
            rows=partial(_of_all, gather, rows), same_loss=_mean([part.same for part in parts]),
            slope=_mean([part.slope for part in parts], 1.0),
        )  # fmt: skip
        return self._judge(seen)

    def _judge(self, step: Step) -> list[Raised]:
        judged = [(code, watch.step(step)) for code, watch in self.watches.items()]
        said = {code: word for code, word in judged if word is not None}
        if self.dump is not None and (codes := [code for code in said if self.watches[code].dumps]):
            place = self.dump(step.step, codes, step.loss if step.bad_loss is None else step.bad_loss)
            again = "" if place is None else line("dpo-train", override("replay", place))
            for code in codes if place is not None else ():
                word = said[code]
                said[code] = Said(word.message, {**word.evidence, "replay": place}, again)
        return [self.speak(code, word, step.step) for code, word in said.items()]

    def evaluated(self, split: str, values: Mapping[str, float], step: int) -> list[Raised]:
        """Judge an evaluation of a set while training, by its metrics over all processes; every process calls it."""
        first = self._first.setdefault(split, {n: float(values[n]) for n in sorted(values.keys() & set(_KEPT))})
        seen = Evaluation(step, split, values, first)
        judged = [(code, watch.evaluation(seen)) for code, watch in self.watches.items()]
        return [self.speak(code, word, step) for code, word in judged if word is not None]

    def end(self) -> None:
        """Judge a step that nobody closed: what ended the training may have been it."""
        if self._step is not None:
            self.close(self._step)


_KEPT = ("ce/chosen", "ce/rejected", "rewards/margins", "entropy", "entropy/chosen", "entropy/response")
"""Metrics of a set's first evaluation that later ones are judged against."""


def _rows(batch: Batch) -> list[Row]:
    """The rows of a batch, both sides together; those that only fill it are left out."""
    tokens, bad = batch.policy.get("n_tokens"), batch.bad_rows()
    n = np.full(len(batch), np.nan) if tokens is None else tokens.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logp = batch.policy["sum_logp"].sum(axis=0) / n
    real = batch.rows != PADDING
    return [
        Row(pair_id, float(n[i]), float(logp[i]), bool(bad[i])) for i, pair_id in enumerate(batch.pair_ids) if real[i]
    ]


def _mean(values: Sequence[float], without: float = math.nan) -> float:
    """The mean of those that are finite; `without`: where none is."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else without


def _of_all(everyones: Everyones, rows: Sequence[Row]) -> list[Row]:
    return [row for of_rank in everyones(rows) for row in of_rank]


PADDING = -2
"""`training.batch.PADDING`, which comes with torch."""
