"""The head in tiles against whole logits in float64: every output, gradients, ties, tiles of every shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.models import head_tiles as module
from dpo_diag.models.tiled_head import OUTPUTS, tiled_head


def whole(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, t: torch.Tensor, **options: Any) -> dict[str, Any]:
    """What `tiled_head` gives, from the logits."""
    z = h.double() @ w.double().T
    z = (z if b is None else z + b.double()) * options.get("scale", 1.0)
    if (cap := options.get("softcap")) is not None:
        z = torch.tanh(z / cap) * cap
    z = z / options.get("temperature", 1.0)
    logp = z.log_softmax(-1)
    own = z.gather(1, t[:, None])
    return {
        "log_probs": logp.gather(1, t[:, None]).squeeze(1), "entropy": -(logp.exp() * logp).sum(1),
        "log_sum_sq_probs": (2 * logp).logsumexp(1), "mean_logits": z.mean(1), "is_top1": z.argmax(1) == t,
        "greedy_logp": logp.amax(1), "is_top5": (z > own).sum(1) < 5,
    }  # fmt: skip


def problem(n: int, vocabulary: int, width: int, bias: bool, seed: int = 0) -> tuple[Any, ...]:
    """Every third target is the likeliest token, every third one of the first six."""
    draw = torch.Generator().manual_seed(seed)
    h, w = torch.randn(n, width, generator=draw), torch.randn(vocabulary, width, generator=draw)
    b = torch.randn(vocabulary, generator=draw) if bias else None
    t = torch.randint(0, vocabulary, (n,), generator=draw)
    order = (h @ w.T + (0 if b is None else b)).argsort(1, descending=True)
    t[::3] = order[::3, 0]
    t[1::3] = order[1::3, min(4, vocabulary - 1)]
    return h, w, b, t


SHAPES: list[dict[str, Any]] = [
    {}, {"scale": 0.25}, {"softcap": 5.0, "scale": 2.0}, {"temperature": 2.0}, {"softcap": 3.0, "temperature": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize(("tile", "columns"), [(2**17, 1024), (64, 16), (7, 7)])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], bias: bool, tile: int, columns: int
) -> None:
    """23 positions, 50 tokens: one tile, 4 x 4 of them with a remainder each way, one row a tile."""
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "COLUMNS", columns)
    h, w, b, t = problem(23, 50, 8, bias)
    leaves = [x.clone().requires_grad_() for x in (h, w, b) if x is not None]
    again = [x.clone().double().requires_grad_() for x in (h, w, b) if x is not None]
    found = tiled_head(*leaves, *([] if bias else [None]), t, outputs=OUTPUTS, **options)
    expected = whole(*again, *([] if bias else [None]), t, **options)
    for name, value in expected.items():
        got = getattr(found, name)
        if value.dtype == torch.bool:
            assert torch.equal(got, value), name
            assert 0 < value.sum() < 23
        else:
            assert torch.allclose(got.double(), value, atol=5e-6, rtol=1e-6), name
    weights = torch.linspace(-1, 1, 23)
    weights[5:9] = 0.0  # outside the loss
    (found.log_probs * weights + found.entropy * 2 * weights).sum().backward()
    (expected["log_probs"] * weights + expected["entropy"] * 2 * weights).sum().backward()
    for x, y in zip(leaves, again, strict=True):
        assert x.grad is not None and y.grad is not None
        assert torch.allclose(x.grad.double(), y.grad, atol=2e-5 * float(y.grad.abs().max()))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(0, 99))
def test_every_tiling_is_the_same(n: int, vocabulary: int, tile: int, columns: int, seed: int) -> None:
    h, w, b, t = problem(n, vocabulary, 4, True, seed)
    before = module.TILE, module.COLUMNS
    try:
        module.TILE, module.COLUMNS = tile, columns
        found = tiled_head(h, w, b, t, outputs=OUTPUTS)
    finally:
        module.TILE, module.COLUMNS = before
    for name, value in whole(h, w, b, t).items():
        assert torch.allclose(getattr(found, name).double(), value.double(), atol=1e-5, rtol=1e-5), name


def test_of_equal_logits_the_first_is_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four logits are 0: token 0 is the first choice, within a tile and across tiles; none is above another, so all
    are among the first five. log p = -log 4, the entropy log 4, the sum of squares 1/4."""
    for columns in (4, 2, 1):
        monkeypatch.setattr(module, "COLUMNS", columns)
        found = tiled_head(torch.zeros(4, 3), torch.ones(4, 3), None, torch.arange(4), outputs=OUTPUTS)
        assert found.is_top1 is not None and found.is_top5 is not None
        assert found.is_top1.tolist() == [True, False, False, False]
        assert found.is_top5.tolist() == [True] * 4
        log4 = torch.log(torch.tensor(4.0)).expand(4)
        for value, expected in (
            (found.log_probs, -log4), (found.entropy, log4), (found.log_sum_sq_probs, -log4), (found.greedy_logp, -log4)
        ):  # fmt: skip
            assert torch.allclose(value, expected)


def test_nothing_asked_for_is_nothing_given() -> None:
    h, w, _, t = problem(3, 7, 4, False)
    found = tiled_head(h, w, None, t)
    assert [v is None for v in found] == [False, *[True] * 6]


def test_no_positions() -> None:
    found = tiled_head(torch.zeros(0, 4), torch.ones(7, 4), None, torch.zeros(0, dtype=torch.long), outputs=OUTPUTS)
    assert all(v is not None and v.shape == (0,) for v in found)


def test_under_autocast_products_are_bfloat16() -> None:
    """As a bfloat16 head computes them: nearer to whole logits rounded to bfloat16 than to float32 ones, and the
    gradient has the weight's type."""
    h, w, _, t = problem(23, 50, 8, False)
    w = w.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tiled_head(h, w, None, t)
    rounded = (h.bfloat16() @ w.bfloat16().T).float().log_softmax(-1).gather(1, t[:, None]).squeeze(1)
    assert torch.allclose(found.log_probs, rounded, atol=1e-5)
    assert not torch.allclose(found.log_probs, (h @ w.T).log_softmax(-1).gather(1, t[:, None]).squeeze(1), atol=1e-4)
    found.log_probs.sum().backward()
    assert w.grad is not None and w.grad.dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_top5_of_bfloat16_logits_counts_those_logits(way: str, bias: bool) -> None:
    """Rounded logits are compared with the target's as it is rounded: a fifth choice has four above it, whichever way
    its own logit was rounded. Unrounded, half of them would be above themselves."""
    h, w, b, _ = problem(400, 600, 16, bias)
    h, w, b = h.bfloat16(), w.bfloat16(), None if b is None else b.bfloat16()
    z = h @ w.T
    z = (z if b is None else z + b).float()
    t = z.topk(5, dim=1).indices[:, 4]
    if way == "weights":
        found = tiled_head(h, w, b, t, outputs=("is_top5",))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = tiled_head(h.float(), w.float(), None if b is None else b.float(), t, outputs=("is_top5",))
    assert found.is_top5 is not None
    assert found.is_top5.float().mean() == 1
