"""Small runs by hand: means of training batches or of a fixed set, and per-pair sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis.checks import CHECKS, CheckContext, Example, check_thresholds
from dpo_diag.diagnosis.checks.shared import example
from dpo_diag.records import Run


@pytest.fixture
def means(tmp_path: Path) -> Callable[..., Run]:
    """`means(train={name: values}, held={name: values}, every=5, weight=..., **run_json)`; held starts at step 0."""
    made: list[Run] = []

    def make(
        train: Mapping[str, Sequence[float]] | None = None,
        held: Mapping[str, Sequence[float]] | None = None,
        every: int = 5,
        weight: float | None = None,
        epochs: Sequence[float] | None = None,
        **meta: Any,
    ) -> Run:
        example = Example(train=train or {}, fixed=held or {}, every=every, answers=weight, epochs=epochs, run=meta)
        made.append(example.write(tmp_path / f"means{len(made)}"))
        return made[-1]

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
        tables = {"texts": texts, "history": history}
        example = Example(
            pairs=sums, tokens=(n_c, n_r), reference=ref, columns=columns or {}, run=meta,
            tables={name: rows for name, rows in tables.items() if rows},
        )  # fmt: skip
        return example.write(tmp_path / "pairs")

    return make


@pytest.fixture
def finding() -> Callable[..., dict[str, Any]]:
    """`finding(run, "DVG001", **thresholds)`: what one check says, whose evidence holds no key that it does not
    declare."""

    def find(
        run: Run, code: str, split: str | None = None, from_step: int | None = None, to_step: int | None = None,
        **thresholds: float,
    ) -> dict[str, Any]:  # fmt: skip
        context = CheckContext.from_run(run, from_step, to_step, split)
        found = CHECKS[code].run(context, check_thresholds(thresholds))
        assert set(found["evidence"]) <= set(CHECKS[code].evidence)
        return found

    return find


@pytest.fixture
def noise() -> Callable[[int, float, int], Any]:
    """`noise(n, sd, seed)`: reproducible normal noise."""
    return example.noise
