"""DVG028: values that their names do not allow, what they are instead, and what is not computed from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.checks.shared.example import SIGMOID, Example

N = 30
MARGINS = ("rewards/margins", "rewards/chosen", "rewards/rejected")


def columns(k: float = 1.0, accuracy: list[float] | None = None) -> dict[str, list[float]]:
    """A sigmoid run, every mean times k: margins 0.04, 0.08, ...; the first loss is k x 0.6733."""
    margins = [0.04 * i for i in range(1, N + 1)]
    return {
        "loss": [k * math.log1p(math.exp(-m)) for m in margins],
        "rewards/margins": [k * m for m in margins],
        "rewards/chosen": [-k * m / 2 for m in margins],
        "rewards/rejected": [-k * 1.5 * m for m in margins],
        "rewards/accuracies": accuracy or [k * 0.8] * N,
    }


def explained(folder: Path, train: dict[str, list[float]], **run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the document, DVG028's finding)."""
    document = explain(Example("", train=train, run=run).write(folder / "run"))
    return document, next(c for c in document["checks"] if c["code"] == "DVG028")


@pytest.mark.parametrize("k", [2, 4, 8, 16])
@pytest.mark.parametrize("left_out", [(), MARGINS])
def test_sums_over_micro_batches(k: int, left_out: tuple[str, ...], tmp_path: Path) -> None:
    """Accuracy k x 0.8, first loss k x 0.6733: with margins, and by the first loss alone (near ln 2)."""
    document, found = explained(tmp_path, {n: v for n, v in columns(k).items() if n not in left_out})
    assert (found["outcome"], found["severity"]) == ("speaks", "error")
    assert (found["evidence"]["cause"], found["evidence"]["factor"]) == ("sum", k)
    assert f"({0.8 * k:.4g} = {k} x 0.8, and the first loss " in found["reason"]
    assert f"= {k} x 0.6733)" in found["reason"]
    assert {c["code"] for c in document["checks"] if c["outcome"] == "speaks"} == {"DVG028"}
    held = next(c for c in document["checks"] if c["code"] == "DVG001")
    assert left_out or held["reason"].endswith("(what train logs is implausible, see DVG028)")
    assert (document["verdict"]["label"], document["verdict"]["harm"]) == ("implausible_numbers", "cannot_tell")


def test_a_sum_over_many_is_told_roughly(tmp_path: Path) -> None:
    """50 x 0.6733 = 33.67 is as well 51 x 0.6602."""
    _, found = explained(tmp_path, columns(50))
    assert found["evidence"]["factor"] == pytest.approx(50, abs=2)
    assert "sums over about 5" in found["reason"]


@pytest.mark.parametrize(
    ("accuracy", "cause"),
    [([77.3] * N, "percent"), ([float(i % 5) for i in range(N)], "count"), ([-1.0] * N, "unknown")],
)
def test_an_accuracy_alone_leaves_the_rest(accuracy: list[float], cause: str, tmp_path: Path) -> None:
    """The loss starts at 0.6733, as a mean does: only the accuracies are not used, and displacement is found."""
    document, found = explained(tmp_path, columns(accuracy=accuracy))
    assert (found["outcome"], found["severity"], found["evidence"]["cause"]) == ("speaks", "warning", cause)
    assert document["verdict"]["label"] == "likelihood_displacement"


def test_an_accuracy_above_1_that_nothing_explains_withholds_all(tmp_path: Path) -> None:
    """No loss says over how many the 1.7 is summed."""
    train = {n: v for n, v in columns(accuracy=[1.7] * N).items() if n != "loss"}
    _, found = explained(tmp_path, train)
    assert (found["severity"], found["evidence"]["cause"]) == ("error", "unknown")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("ppl_token/chosen", [-2.0] * N, "a perplexity is at least 1"),
        ("ce/chosen", [-1.5] * N, "a cross-entropy is at least 0"),
        ("logps/chosen", [120.0] * N, "a log-prob is at most 0: its sign is turned"),
        ("mean_token_accuracy", [0.9] * 29 + [1.2], "a share is at most 1"),
    ],
)
def test_other_bounds(name: str, values: list[float], words: str, tmp_path: Path) -> None:
    _, found = explained(tmp_path, {**columns(), name: values})
    assert found["outcome"] == "speaks"
    assert words in found["reason"]


def test_a_loss_below_its_floor(tmp_path: Path) -> None:
    """Below 0, for a sigmoid or an unnamed loss; a robust loss has no floor, and is not judged."""
    train = columns() | {"loss": [0.3 - 0.05 * i for i in range(N)]}
    document, found = explained(tmp_path / "unnamed", train)
    assert (found["severity"], document["verdict"]["label"]) == ("error", "implausible_numbers")
    assert found["reason"].startswith("loss of train is -1.15, and this loss is at least 0, unless")
    assert explained(tmp_path / "sigmoid", train, loss=SIGMOID)[1]["outcome"] == "speaks"
    robust = {**SIGMOID, "types": ["robust"], "label_smoothing": 0.1}
    assert explained(tmp_path / "robust", train, loss=robust)[1]["outcome"] == "silent"


def test_rounding_is_no_violation(tmp_path: Path) -> None:
    """1.001 is what bfloat16 makes of a share of 1; scores have scales of their own."""
    _, found = explained(tmp_path, columns(accuracy=[1.001] * N) | {"score/bleu": [31.0] * N})
    assert found["outcome"] == "silent"
