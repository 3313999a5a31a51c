"""Small runs by hand: means of training batches or of a fixed set, and per-pair sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_diag.diagnosis.checks import CheckContext, run_checks
from dpo_diag.records import Run, RunWriter, load_run
from dpo_diag.records.inferred import infer
from dpo_diag.thresholds import load_thresholds

SIGMOID = {"types": ["sigmoid"], "beta": 0.1}


@pytest.fixture
def means(tmp_path: Path) -> Callable[..., Run]:
    """`means(train={name: values}, held={name: values}, every=5, weight=..., **run_json)`; held starts at step 0."""

    made: list[Path] = []

    def make(
        train: Mapping[str, Sequence[float]] | None = None,
        held: Mapping[str, Sequence[float]] | None = None,
        every: int = 5,
        weight: float | None = None,
        epochs: Sequence[float] | None = None,
        split: str = "eval",
        **meta: Any,
    ) -> Run:
        made.append(tmp_path / f"means{len(made)}")
        writer = RunWriter(made[-1], kind="imported")
        writer.update(**meta)
        rows: list[dict[str, Any]] = []
        for name, values in (train or {}).items():
            for i, v in enumerate(values):
                epoch = epochs[i] if epochs is not None else None
                rows.append({"step": (i + 1) * every, "epoch": epoch, "split": "train", "name": name, "value": v})
        for name, values in (held or {}).items():
            at, where = name.split("@") if "@" in name else (name, split)
            rows += [
                {"step": i * every, "split": where, "name": at, "value": v, "weight": weight}
                for i, v in enumerate(values)
            ]
        writer.write("history", rows)
        # As an import does where the log does not say it.
        writer.update(**vars(infer(load_run(made[-1]).history)) | meta)
        return load_run(made[-1])

    return make


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., Run]:
    """`pairs({step: (chosen sums, rejected sums)}, n_c=, n_r=, ref=, columns={name: {step: (c, r)}}, **run_json)`."""

    def make(
        sums: Mapping[int, tuple[Any, Any]],
        n_c: Any = 10,
        n_r: Any = 10,
        ref: tuple[Any, Any] | None = None,
        columns: Mapping[str, Mapping[int, tuple[Any, Any]]] | None = None,
        texts: Sequence[Mapping[str, str]] = (),
        history: Sequence[Mapping[str, Any]] = (),
        **meta: Any,
    ) -> Run:
        writer = RunWriter(tmp_path / "pairs")
        writer.update(**({"loss": SIGMOID} | meta))
        rows: list[dict[str, Any]] = []
        size = len(np.atleast_1d(next(iter(sums.values()))[0]))

        def side_rows(step: int, role: str, both: tuple[Any, Any]) -> None:
            for k, (side, n) in enumerate((("chosen", n_c), ("rejected", n_r))):
                values, counts = np.broadcast_to(both[k], size), np.broadcast_to(n, size)
                for i in range(size):
                    row = {
                        "step": step, "split": "eval", "role": role, "pair_id": f"pair{i:03d}", "side": side,
                        "sum_logp": float(values[i]), "n_tokens": int(counts[i]), "n_bytes": 4 * int(counts[i]),
                    }  # fmt: skip
                    for name, by_step in (columns or {}).items():
                        if role == "policy" and step in by_step:
                            row[name] = float(np.broadcast_to(by_step[step][k], size)[i])
                    rows.append(row)

        for step, both in sums.items():
            side_rows(step, "policy", both)
        if ref is not None:
            side_rows(0, "ref", ref)
        writer.write("pairs", rows)
        if texts:
            writer.write("texts", list(texts))
        if history:
            writer.write("history", list(history))
        return load_run(tmp_path / "pairs")

    return make


@pytest.fixture
def finding() -> Callable[..., dict[str, Any]]:
    """`finding(run, "DVG001", **thresholds)`: what one check of the table says."""

    def find(
        run: Run, code: str, split: str | None = None, from_step: int | None = None, to_step: int | None = None,
        **thresholds: float,
    ) -> dict[str, Any]:  # fmt: skip
        context = CheckContext.from_run(run, from_step, to_step, split)
        return next(f for f in run_checks(context, load_thresholds(thresholds)) if f["code"] == code)

    return find


@pytest.fixture
def noise() -> Callable[[int, float, int], Any]:
    """`noise(n, sd, seed)`: reproducible normal noise."""
    return lambda n, sd=1.0, seed=0: np.random.default_rng(seed).normal(0.0, sd, n)
