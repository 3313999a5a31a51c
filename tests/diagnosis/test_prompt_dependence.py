"""LongPPL to its definition, and its idea on pairs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from builders import build_token_run
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.prompt_dependence import key_tokens, longppl, prompt_dependence

LONG, SHORT = [-1.0, -0.5, -3.0, -0.1], [-4.0, -1.0, -9.0, -2.2]


def test_longppl_by_hand() -> None:
    """Differences 3, .5, 6, 2.1; above 2: tokens 0, 2, 3; token 2's long log-prob -3 is below -2: keys 0 and 3.
    exp((1 + .1)/2) = exp(.55) = 1.7333; plain exp(4.6/4) = 3.1582."""
    found = longppl(LONG, SHORT)
    assert key_tokens(LONG, SHORT).tolist() == [True, False, False, True]
    assert (found.n_key, found.n_tokens) == (2, 4)
    assert found.longppl == pytest.approx(1.7333, abs=5e-5)
    assert found.ppl == pytest.approx(3.1582, abs=5e-5)


def test_thresholds_are_strict() -> None:
    assert key_tokens([-2.0, -1.0], [-9.0, -3.0]).tolist() == [False, False]


def test_keys_can_come_from_an_evaluator() -> None:
    """The evaluator marks token 2 alone: exp(3) over the model's own log-prob of it."""
    found = longppl(LONG, SHORT, evaluator_long=[-3, -3, -0.5, -3], evaluator_short=[-4, -4, -4, -4])
    assert (found.n_key, found.longppl) == (1, pytest.approx(math.exp(3.0)))
    with pytest.raises(ValueError, match="go together"):
        longppl(LONG, SHORT, evaluator_long=LONG)


def test_no_key_token_is_nan_not_one() -> None:
    found = longppl([-1.0], [-1.0])
    assert math.isnan(found.longppl) and found.n_key == 0 and found.ppl == pytest.approx(math.e)
    assert math.isnan(longppl([], []).ppl)


def test_impossible_without_context_is_key_and_unknown_is_not() -> None:
    assert key_tokens([-1.0, -1.0, math.nan], [-math.inf, math.nan, -9.0]).tolist() == [True, False, False]


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=60))
def test_lower_thresholds_only_add_keys(tokens: list[tuple[float, float]]) -> None:
    long, short = (np.array(v) for v in zip(*tokens, strict=True))
    strict, loose = key_tokens(long, short), key_tokens(long, short, gain=1.0, floor=-4.0)
    assert (loose | ~strict).all()


def test_on_pairs_the_same_keys_at_both_steps(tmp_path: Path) -> None:
    """Chosen tokens -1 -1 with no-prompt -4 -1.5: token 0 is key. It falls by 2, the other by 1: plain log-perplexity
    1 -> 2.5, key 1 -> 3, other 1 -> 2."""
    run = build_token_run(
        tmp_path / "run",
        {"q": ([5, 6], [5, 6])},
        {0: {"q": ([-1, -1], [-1, -1])}, 10: {"q": ([-3, -2], [-1, -1])}},
        end=None,
        extra={"logp_no_prompt": np.array([-4.0, -1.5], dtype=np.float32)},
    )
    aligned = align(run)
    change = aligned.tokens
    assert change is not None
    found = prompt_dependence(aligned, change)
    chosen = found["chosen"]
    assert found["chosen_by"] == "the reference"
    assert (chosen["n_key"], chosen["n_tokens"]) == (1, 2)
    assert chosen["ppl_key"] == {"from": math.exp(1), "to": math.exp(3), "dlog": 2.0}
    assert chosen["ppl_token"]["dlog"] == 1.5
    assert chosen["ppl_other"]["dlog"] == 1.0
    assert (chosen["delta_key"], chosen["delta_other"], chosen["residual"]) == (-2.0, -1.0, 0.0)


def test_not_applicable_without_the_column(tmp_path: Path) -> None:
    run = build_token_run(tmp_path / "run", {"q": ([5], [6])}, {0: {"q": ([-1], [-1])}, 10: {"q": ([-3], [-1])}})
    aligned = align(run)
    change = aligned.tokens
    assert change is not None
    assert "logp_no_prompt" in prompt_dependence(aligned, change)["not_applicable"]
