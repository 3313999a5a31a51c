"""Every architecture goes the quickest way that is right for it, and says which; a way that is wrong is found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.errors import DiagError
from dpo_diag.models.float32 import in_float32
from dpo_diag.models.logps import proved_way, score_tokens
from dpo_diag.models.packed import attention, verify
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.packed.ways import Way

from .architectures import RIGHT, WRONG, make
from .test_attention import SPANS, pairs

WAYS = dict.fromkeys(RIGHT, "packed") | dict.fromkeys(WRONG, "plain") | {"Falcon": "cached", "BLOOM": "cached"}
ALONE = Way(batch_size=1)


def sums(model: Any, spans: list[Span], way: Way) -> np.ndarray:
    return np.array([own.logp.sum() for own in score_tokens(model, spans, way=way)])


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_each_architecture_goes_a_way_that_is_right(name: str) -> None:
    model = make(name)
    proved = proved_way(model, SPANS, Way(batch_size=3))
    assert proved.way.name == WAYS[name]
    assert np.allclose(sums(model, SPANS, proved.way), sums(model, SPANS, ALONE), atol=1e-4)
    if proved.way.name == "packed":
        assert proved.note() is None and proved.difference is not None and proved.difference < 1e-4
    else:
        assert "packed: " in str(proved.note())
    if proved.way.name == "plain":
        with pytest.raises(DiagError, match="cannot compute a shared prompt once"):
            proved_way(model, SPANS, Way(), "on")


def test_off_tries_nothing_and_no_spans_prove_nothing() -> None:
    model = make("Llama")
    model.forward = None  # type: ignore[assignment]
    assert proved_way(model, SPANS, Way(), "off").way.name == "plain"
    assert proved_way(model, [Span([], [3])], Way(), "on").way.name == "plain"


def test_a_window_that_is_not_kept_shows_only_on_the_longest_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral with a window of 8: an attention without one is right on pairs of 7 tokens, and wrong on one of 22."""
    mask = attention.Layout.mask
    monkeypatch.setattr(attention.Layout, "mask", lambda self, before, n, window, like: mask(self, before, n, 0, like))
    model, short, long = make("Mistral"), pairs(0, (2, 3, 2), (3, 1, 2)), pairs(5, (10, 12, 9))
    assert proved_way(model, short, Way()).way.name == "packed"
    proved = proved_way(model, [*short, *long], Way())
    assert proved.way.name == "cached" and "packed: sums of log-probs differ by" in str(proved.note())


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([-9, -8, -7, -6, -5, -6], None),
        ([-9, -8, -7.01, -6, -5, -6], "sums of log-probs differ by 0.01 nats"),
        ([-9, -8, -7, -6, -5, -6.5], "other tokens in one response move the next one by 0.5 nats"),
        ([-9, -8, np.nan, -6, -5, -6], "sums of log-probs differ by nan nats"),
    ],
)
def test_what_decides(monkeypatch: pytest.MonkeyPatch, found: list[float], reason: str | None) -> None:
    """Sums of two pairs against -9, -8, -7, -6 alone (1e-3 nats are allowed); behind them the last pair's chosen with
    other tokens, which may be anything, and its rejected again, which must be what it was."""
    monkeypatch.setattr(verify, "_QUICKER", ("packed",))
    monkeypatch.setattr(
        verify, "_sums", lambda _, spans, way: np.array(found if way.name == "packed" else [-9.0, -8.0, -7.0, -6.0])
    )
    proved = proved_way(make("Llama"), pairs(0, (9, 3, 4), (5, 3, 4)), Way())
    assert proved.refused == (() if reason is None else (("packed", reason),))


def test_no_memory_to_prove_anything_is_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(verify, "_sums", full)
    proved = proved_way(make("Llama"), SPANS, Way())
    assert proved.way.name == "plain" and "float32" in str(proved.note())


def test_half_precision_is_proved_in_float32_and_left_as_it_was() -> None:
    """bfloat16 alone moves these sums by more than the tolerance; the weights are the same memory afterwards."""
    model = make("Gemma 2").bfloat16()
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    before = {n: (t.data_ptr(), t.dtype, t.clone()) for n, t in tensors.items()}
    rounding = np.abs(sums(model, SPANS, ALONE) - sums(make("Gemma 2"), SPANS, ALONE)).max()
    proved = proved_way(model, SPANS, Way())
    assert proved.way.name == "packed" and proved.difference is not None and proved.difference < 1e-4 < rounding
    for n, t in tensors.items():
        assert (t.data_ptr(), t.dtype) == before[n][:2] and torch.equal(t, before[n][2])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert np.allclose(sums(model, SPANS, proved.way), sums(model, SPANS, ALONE), atol=4 * rounding)


def test_in_float32_the_model_is_its_exact_self_even_when_it_fails() -> None:
    """The float32 copy of bfloat16 weights gives the same logits to the last bit, tied embeddings included."""
    model = make("Llama").bfloat16()
    model.lm_head.weight = model.model.embed_tokens.weight
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        rounded = model(ids).logits
        with in_float32(model):
            exact = model(ids).logits
        with pytest.raises(RuntimeError), in_float32(model):
            model(ids, attention_mask=torch.zeros(1, 1, 3, 3))  # fails inside a block
        assert torch.equal(model(ids).logits, rounded)
        assert torch.equal(exact, model.float()(ids).logits)


def test_in_float32_weights_keep_who_listens_to_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DDP's reducer does, at the node that accumulates it; and where the memory holds one of two copies, neither
    stays."""
    model = torch.nn.Linear(2, 2).bfloat16()
    weight, heard = model.weight, []
    node = weight.expand_as(weight).grad_fn.next_functions[0][0]
    node.register_hook(lambda *_: heard.append(1))
    with in_float32(model, backward=True):
        assert model.weight.dtype == torch.float32 and model.weight.requires_grad
    weight.sum().backward()
    assert heard == [1] and model.weight is weight
    whole, copied = torch.Tensor.float, []

    def full(t: torch.Tensor) -> torch.Tensor:
        if copied:
            raise torch.OutOfMemoryError("no room")
        copied.append(t)
        return whole(t)

    monkeypatch.setattr(torch.Tensor, "float", full)
    with pytest.raises(torch.OutOfMemoryError), in_float32(model):
        pass
    assert copied and {p.dtype for p in model.parameters()} == {torch.bfloat16}


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 90), st.integers(1, 5), st.integers(0, 198))
def test_order_budget_and_padding_change_nothing(order: list[int], tokens: int, batch: int, pad: int) -> None:
    """Spans in any order, rows of any size, batches padded with any token: the same sums to 1e-5 and the same ranks."""
    own = [SPANS[i] for i in order]
    for way in (Way("packed", row_tokens=tokens), Way("cached", batch, pad_id=pad), Way("plain", batch, pad_id=pad)):
        found = score_tokens(MODEL, own, way=way)
        for i, one in zip(order, found, strict=True):
            assert np.allclose(one.logp, EXPECTED[i].logp, atol=1e-5)
            assert np.allclose(one.entropy, EXPECTED[i].entropy, atol=1e-5)
            assert one.rank.tolist() == EXPECTED[i].rank.tolist()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_swapping_chosen_and_rejected_swaps_their_sums(seed: int) -> None:
    spans = pairs(seed, (7, 5, 9), (4, 6, 2))
    swapped = [spans[i] for i in (1, 0, 3, 2)]
    way = Way("packed")
    assert np.allclose(sums(MODEL, spans, way)[[1, 0, 3, 2]], sums(MODEL, swapped, way), atol=1e-5)


MODEL = make("Qwen3")
EXPECTED = score_tokens(MODEL, SPANS, way=ALONE)
