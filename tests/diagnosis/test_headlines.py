"""Whole logs and what stands first: simulated batches of pairs, each with one thing wrong, or two, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.checks import Example
from dpo_diag.stats import FloatArray

Loss = Callable[[FloatArray], FloatArray]


def sigmoid(margins: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp(0.0, -margins))


def batches(chosen: FloatArray, rejected: FloatArray, loss: Loss = sigmoid, sd: float = 0.3) -> dict[str, Any]:
    """Logged rows of 16 pairs each, whose rewards scatter by `sd` around the two curves."""
    rng = np.random.default_rng(0)
    shape = (len(chosen), 16)
    spread = sd * np.minimum(1.0, np.abs(chosen - rejected) + 0.2)[:, None]
    c, r = (curve[:, None] + spread * rng.normal(size=shape) for curve in (chosen, rejected))
    return {
        "loss": loss(c - r).mean(1), "rewards/chosen": c.mean(1), "rewards/rejected": r.mean(1),
        "rewards/margins": (c - r).mean(1), "rewards/accuracies": (c > r).mean(1),
    }  # fmt: skip


def to(end: float, n: int = 60) -> FloatArray:
    """From near 0 to `end`, fast at first."""
    return np.asarray(end * (1 - np.exp(-3 * np.arange(1, n + 1) / n)) / (1 - np.exp(-3)))


def line(start: float, end: float, n: int = 60) -> FloatArray:
    return np.linspace(start, end, n)


def with_nan(rows: dict[str, Any]) -> dict[str, Any]:
    return {k: np.where(np.arange(len(v)) >= len(v) - 8, np.nan, v) for k, v in rows.items()}


BACK = np.concatenate([to(2.0, 40), line(2.0, 0.2, 20)])
FAR = np.concatenate([to(1.2, 40), line(1.2, -1.5, 20)])
CASES: dict[str, tuple[Example, str, str, tuple[str, ...]]] = {
    "healthy": (Example(train=batches(to(0.6), to(-1.2))), "healthy", "none", ()),
    "a fall that DVG001 calls immaterial": (Example(train=batches(to(-0.13), to(-3.3))), "healthy", "none", ()),
    "displaced": (Example(train=batches(to(-2.0), to(-4.5))), "likelihood_displacement", "cannot_tell", ()),
    "a slow drift": (
        Example(train=batches(line(0, -0.3, 120), line(0, -1.8, 120))), "likelihood_displacement", "cannot_tell", ()
    ),
    "fell within the first rows and stays": (
        Example(train=batches(np.full(40, 0.3), np.full(40, -0.5)), every=50), "healthy", "none", ()
    ),
    "collapsed and at the floor": (
        Example(train=batches(to(0.3), to(-12.0))), "rejected_collapse", "cannot_tell", ("DVG010",)
    ),
    "displaced and collapsed": (
        Example(train=batches(to(-2.0), to(-9.0))), "likelihood_displacement", "cannot_tell", ("DVG002",)
    ),
    "displaced and at the floor": (
        Example(train=batches(to(-1.5), to(-4.9), sd=0.1), fixed={"loss": [0.69, 0.1, 0.006, 0.005]}),
        "likelihood_displacement", "cannot_tell", (),
    ),
    "a wrong reference, and displaced": (
        Example(train=batches(line(5, 1.5), line(5, -4)), every=1), "reference_mismatch", "cannot_tell",
        ("DVG001", "DVG002"),
    ),
    "NaN, and displaced": (
        Example(train=with_nan(batches(to(-2.0), to(-4.5)))), "broken_numbers", "cannot_tell", ("DVG001",)
    ),
    "diverged": (Example(train=batches(FAR * 0.3, -FAR * 0.7)), "loss_rose", "cannot_tell", ()),
    "climbed back": (Example(train=batches(BACK / 2, -BACK / 2, sd=0.15)), "loss_rose", "cannot_tell", ()),
    "both fall alike": (Example(train=batches(to(-2.0), to(-2.0), sd=0.1)), "chosen_fell", "cannot_tell", ("DVG009",)),
    "ipo": (
        Example(train=batches(to(0.06), to(-0.08), lambda m: (m / 0.1 - 5) ** 2, sd=0.02),
                run={"loss": {"types": ["ipo"], "beta": 0.1}}),
        "healthy", "none", (),
    ),
    "label smoothing": (
        Example(train=batches(to(0.5), to(-1.0), lambda m: 0.9 * sigmoid(m) + 0.1 * sigmoid(-m)),
                run={"loss": {"types": ["sigmoid"], "beta": 0.1, "label_smoothing": 0.1}}),
        "healthy", "none", (),
    ),
    "only the loss": (Example(train={"loss": batches(to(0.6), to(-1.2))["loss"]}), "cannot_tell", "cannot_tell", ()),
    "four evaluations": (
        Example(fixed={"loss": [0.6931, 0.05, 0.001, 0.0001], "rewards/chosen": [0.0, 0.5, 0.2, 0.3],
                       "rewards/rejected": [0.0, -20.0, -80.0, -140.0],
                       "rewards/margins": [0.0, 20.5, 80.2, 140.3]}),
        "rejected_collapse", "cannot_tell", (),
    ),
    "two rows": (
        Example(train={"loss": [0.6931, 0.49], "rewards/chosen": [0.0, 0.2], "rewards/rejected": [0.0, -0.3],
                       "rewards/margins": [0.0, 0.5]}, every=1),
        "cannot_tell", "cannot_tell", (),
    ),
    "one row": (
        Example(train={"loss": [0.6931], "rewards/chosen": [0.0], "rewards/rejected": [0.0], "rewards/margins": [0.0]},
                every=1),
        "one_row", "cannot_tell", (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_headline(name: str, tmp_path: Path) -> None:
    example, label, harm, named = CASES[name]
    document = explain(example.write(tmp_path / "run"))
    verdict = document["verdict"]
    assert (verdict["label"], verdict["harm"]) == (label, harm), verdict["text"]
    assert all(code in verdict["text"] for code in named)
    # The first sentence that anybody reads, and no error that it leaves out.
    assert document["narrative"][0]["sentences"][0]["text"] == verdict["text"]
    errors = [c for c in document["checks"] if c["outcome"] == "speaks" and c["severity"] == "error"]
    assert all(c["code"] in verdict["text"] for c in errors)


def test_the_known_start_is_the_first_point(tmp_path: Path) -> None:
    """The loss lies at its plateau from the first row, step 50, on: it fell from ln 2, not by the 0.00 of its rows."""
    document = explain(CASES["fell within the first rows and stays"][0].write(tmp_path / "run"))
    loss = document["loss"]
    assert (loss["from"], loss["from_is"]) == (pytest.approx(0.6931, abs=1e-4), "the reference")
    said = document["narrative"][0]["sentences"][1]["text"]
    assert "the loss fell 0.6931 → " in said and "from the reference to the mean of the last 10 of 40 rows" in said
    assert f"(first row {loss['first']:.4f}, step 50)" in said


def test_window_means_are_said_to_be_means(tmp_path: Path) -> None:
    """Nothing names the loss: 16 rows, the first 1.11; the mean of the first four is (1.11 + 3 x .2) / 4."""
    losses = [1.11, 0.2, 0.2, 0.2, *[0.1] * 8, *[0.03] * 4]
    document = explain(Example(train={"loss": losses}, every=1).write(tmp_path / "run"))
    said = document["narrative"][0]["sentences"][1]["text"]
    assert said == (
        "On train the loss fell 0.42750 → 0.03000, inside its noise, from the mean of the first 4 rows to the mean of "
        "the last 4 of 16 rows (first row 1.110, step 1)."
    )
