"""A run in a few numbers: what makes a check speak, or leaves it silent. A check's test and its page both read it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.records import Run, RunWriter, load_run
from dpo_diag.records.inferred import infer
from dpo_diag.text import number

Values = Sequence[float] | npt.NDArray[np.float64] | float
"""One number per row or pair; a single number stands for all pairs."""
Sides = tuple[Values, Values]
"""(chosen, rejected)."""
SIGMOID: Mapping[str, Any] = {"types": ["sigmoid"], "beta": 0.1}
FIXED = "eval"
_SHOWN = 6


def noise(n: int, sd: float = 1.0, seed: int = 0) -> npt.NDArray[np.float64]:
    """Reproducible normal noise, shape (n,)."""
    return np.random.default_rng(seed).normal(0.0, sd, n)


@dataclass(frozen=True)
class Example:
    """A small run.

    Attributes:
        shows: one sentence: what happens in it.
        train: metric -> its value in each logged row of the training batches; the first row is at step `every`.
        fixed: metric, or metric@split -> its value at each evaluation of a fixed set; the first is at step 0.
        every: optimizer steps between two rows.
        answers: answers behind each value of `fixed` (its weight).
        epochs: epoch of each training row.
        pairs: step -> summed log-probs (nats) of the fixed set's chosen and rejected responses.
        reference: the reference's sums of the same pairs.
        tokens: tokens of each chosen and each rejected response; a token has four bytes.
        columns: further column of the pair records -> step -> its values.
        tables: further records: table -> rows.
        run: fields of run.json; pairs are trained with the sigmoid loss unless it says otherwise.
    """

    shows: str = ""
    train: Mapping[str, Values] = field(default_factory=dict)
    fixed: Mapping[str, Values] = field(default_factory=dict)
    every: int = 5
    answers: float | None = None
    epochs: Values | None = None
    pairs: Mapping[int, Sides] = field(default_factory=dict)
    reference: Sides | None = None
    tokens: Sides = (10, 10)
    columns: Mapping[str, Mapping[int, Sides]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> Run:
        """Write it as a run folder."""
        writer = RunWriter(folder, kind="trained" if self.pairs else "imported")
        writer.update(**({"loss": SIGMOID} if self.pairs else {}) | dict(self.run))
        history = pd.DataFrame(self._history())
        writer.write("history", history)
        if not self.pairs and len(history):
            # As an import does where the log does not say it.
            writer.update(**infer(history).run_fields() | dict(self.run))
        writer.write("pairs", list(self._pairs()))
        for table, rows in self.tables.items():
            writer.write(table, list(rows))
        writer.update(**{"status": "finished"} | dict(self.run))
        return load_run(folder)

    def _history(self) -> Iterator[dict[str, Any]]:
        for name, values in self.train.items():
            for i, value in enumerate(np.atleast_1d(values)):
                epoch = None if self.epochs is None else float(np.atleast_1d(self.epochs)[i])
                yield {"step": (i + 1) * self.every, "epoch": epoch, "split": "train", "name": name, "value": value,
                       "weight": None}  # fmt: skip
        for key, values in self.fixed.items():
            name, _, split = key.partition("@")
            for i, value in enumerate(np.atleast_1d(values)):
                yield {"step": i * self.every, "epoch": None, "split": split or FIXED, "name": name, "value": value,
                       "weight": self.answers}  # fmt: skip

    def _pairs(self) -> Iterator[dict[str, Any]]:
        for step, sums in self.pairs.items():
            yield from self._rows(step, "policy", sums)
        if self.reference is not None:
            yield from self._rows(0, "ref", self.reference)

    def _rows(self, step: int, role: str, sums: Sides) -> Iterator[dict[str, Any]]:
        size = max(np.size(values) for both in (*self.pairs.values(), self.tokens) for values in both)
        for k, side in enumerate(("chosen", "rejected")):
            for i in range(size):
                n = int(_of_pair(self.tokens[k], i))
                row = {
                    "step": step, "split": FIXED, "role": role, "pair_id": f"pair{i:03d}", "side": side,
                    "sum_logp": _of_pair(sums[k], i), "n_tokens": n, "n_bytes": 4 * n,
                }  # fmt: skip
                if role == "policy":
                    row |= {name: _of_pair(at[step][k], i) for name, at in self.columns.items() if step in at}
                yield row

    def lines(self) -> Iterator[str]:
        """What the run holds, a line each: name and numbers, long ones cut."""
        for name, values in self.train.items():
            yield f"{name}, training batches, a row every {self.every} steps: {_listed(values)}"
        for key, values in self.fixed.items():
            name, _, split = key.partition("@")
            n = f", {number(self.answers)} answers each" if self.answers else ""
            yield f"{name}, fixed set {split or FIXED}, every {self.every} steps from step 0{n}: {_listed(values)}"
        if self.epochs is not None:
            yield f"epoch of the training rows: {_listed(self.epochs)}"
        if self.reference is not None:
            yield f"reference, sum_logp: {_both(self.reference)}"
        for step, sums in self.pairs.items():
            yield f"policy at step {step}, sum_logp: {_both(sums)}"
        if self.pairs:
            yield f"n_tokens: {_both(self.tokens)}"
        for name, at in self.columns.items():
            for step, both in at.items():
                yield f"policy at step {step}, {name}: {_both(both)}"
        for table, rows in self.tables.items():
            first = ", ".join(f"{k} {v}" for k, v in rows[0].items())
            yield f"{table}, {len(rows)} rows, the first: {first}"
        for key, value in self.run.items():
            yield f"run.json, {key}: {value}"


def _of_pair(values: Values, i: int) -> float:
    array = np.atleast_1d(values)
    return float(array[i if array.size > 1 else 0])


def _listed(values: Values) -> str:
    array = np.atleast_1d(values)
    if array.size > 1 and np.ptp(array) == 0:
        return f"{number(float(array[0]), 3)} ({array.size} times)"
    if array.size <= _SHOWN + 2:
        return ", ".join(number(float(v), 3) for v in array)
    first = ", ".join(number(float(v), 3) for v in array[:_SHOWN])
    return f"{first}, ... {number(float(array[-1]), 3)} ({array.size} values)"


def _both(sides: Sides) -> str:
    return f"chosen {_listed(sides[0])}; rejected {_listed(sides[1])}"
