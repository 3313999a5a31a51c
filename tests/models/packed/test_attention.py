"""The attention of packed rows against each sequence alone, on every architecture that asks for its attention."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.packed.attention import IMPLEMENTATION, forward_inputs, packed_attention
from dpo_diag.models.packed.rows import Row, Span, pack

from .architectures import RIGHT, VOCABULARY, WINDOW, make


def draw(seed: int, *lengths: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, VOCABULARY, n).tolist() for n in lengths]


def pairs(seed: int, *sizes: tuple[int, int, int]) -> list[Span]:
    """Chosen and rejected of pairs of so many tokens of prompt, chosen, rejected."""
    spans = []
    for i, size in enumerate(sizes):
        prompt, chosen, rejected = draw(seed + i, *size)
        spans += [Span(prompt, chosen), Span(prompt, rejected)]
    return spans


SPANS = pairs(0, (17, 11, 14), (20, 5, 9), (3, 20, 2), (1, 7, 7)) + [Span([], draw(9, 13)[0])]


def alone(model: Any, span: Span) -> torch.Tensor:
    """Log-prob of each token in a forward of this sequence and nothing else, summed in float64."""
    ids = torch.tensor([[*span.prompt, *span.response]])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    own = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    return own[len(own) - span.n_scored :]


def of_row(model: Any, row: Row) -> dict[int, torch.Tensor]:
    """The same of every span of a packed row."""
    logits = model(**forward_inputs(row, torch.device("cpu")), use_cache=False).logits[0, row.read].double()
    own = logits.log_softmax(-1).gather(1, torch.from_numpy(row.targets)[:, None]).squeeze(1)
    return dict(zip(row.spans, own.split(row.n_scored.tolist()), strict=True))


@pytest.mark.parametrize("name", RIGHT)
def test_every_span_is_as_it_is_alone(name: str) -> None:
    """Windows of 8 tokens (where there is one) are shorter than every sequence but two, and end inside prompts."""
    model = make(name)
    assert max(map(len, SPANS)) > 3 * WINDOW
    with torch.no_grad():
        expected = [alone(model, span) for span in SPANS]
        with packed_attention(model):
            found = {i: own for row in pack(SPANS, 64) for i, own in of_row(model, row).items()}
    assert sorted(found) == list(range(len(SPANS)))
    for i, own in found.items():
        assert torch.allclose(own, expected[i], atol=2e-5), f"span {i}"


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "gpt-oss"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_each_sequence_alone(name: str, checkpointing: bool) -> None:
    """Recomputed layers find the layout too, in a backward that runs on another thread."""
    model = make(name)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    sum(alone(model, span).sum() for span in SPANS).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with packed_attention(model):
        total = sum(own.sum() for row in pack(SPANS, 64) for own in of_row(model, row).values())
        thread = threading.Thread(target=total.backward)
        thread.start()
        thread.join()
    largest = max(float(g.abs().max()) for g in expected.values())
    for n, p in model.named_parameters():
        if n in expected:
            assert torch.allclose(p.grad, expected[n], atol=1e-5 * largest), n


def test_what_comes_in_changes_nothing_before_or_beside_it() -> None:
    """Other tokens in one response move neither its neighbour nor another pair, not by a bit."""
    model = make("Llama")
    spans = pairs(3, (9, 6, 7), (5, 4, 8))
    other = [Span(spans[0].prompt, draw(77, 6)[0]), *spans[1:]]
    with torch.no_grad(), packed_attention(model):
        (one,), (two,) = pack(spans, 64), pack(other, 64)
        before, after = of_row(model, one), of_row(model, two)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(before[i], after[i]) for i in (1, 2, 3))


def test_dropout_is_the_models_own_in_training_and_none_in_evaluation() -> None:
    """With every weight dropped the attention adds nothing; evaluation mode drops none."""
    model = make("Llama")
    (row,) = pack(pairs(4, (6, 5, 4)), 64)
    with torch.no_grad(), packed_attention(model):
        kept = of_row(model, row)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.999999
        assert torch.equal(of_row(model, row)[0], kept[0])
        model.train()
        dropped = of_row(model, row)[0]
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.zero_()
        assert torch.allclose(dropped, of_row(model, row)[0], atol=1e-4)


def test_two_models_at_once_and_the_implementation_is_put_back() -> None:
    policy, reference = make("Llama"), make("Gemma 2")
    was = [m.config._attn_implementation for m in (policy, reference)]
    with pytest.raises(RuntimeError, match="on the way"), packed_attention(policy), packed_attention(reference):
        assert policy.config._attn_implementation == reference.config._attn_implementation == IMPLEMENTATION
        (row,) = pack(SPANS[:2], 64)
        with torch.no_grad():
            of_row(policy, row), of_row(reference, row)
        raise RuntimeError("on the way")
    assert [m.config._attn_implementation for m in (policy, reference)] == was


def test_what_cannot_be_packed_is_refused() -> None:
    model = make("Llama")
    ids = torch.tensor([[3, 4, 5]])
    with packed_attention(model), pytest.raises(DiagError, match="does not hand the layout on"):
        model(input_ids=ids)
    for name in ("Falcon", "BLOOM"):
        with pytest.raises(DiagError, match="an attention of its own"), packed_attention(make(name)):
            pass
