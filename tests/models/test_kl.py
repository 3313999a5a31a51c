"""KL of two distributions over a vocabulary, derived by hand, and of two models against their whole softmaxes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from dpo_diag.errors import DiagError
from dpo_diag.models import head_tiles
from dpo_diag.models import kl as module
from dpo_diag.models.head_tiles import Shape
from dpo_diag.models.kl import kl_of_inputs, kl_of_logits, score_kl
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.two_heads import HeadInput
from tests.training.tiny import make_model

SPANS = [Span([5, 6, 7], [8, 9]), Span([5], [10, 11, 12, 13]), Span([], [14, 15]), Span([6], [])]


def by_hand(policy: Any, reference: Any, span: Span) -> list[float]:
    """One sequence at a time, from whole float64 softmaxes."""
    ids = torch.tensor([[*span.prompt, *span.response]])
    with torch.no_grad():
        p, q = (m.eval()(input_ids=ids).logits[0].double().softmax(-1) for m in (policy, reference))
    values = (p * (p / q).log()).sum(-1)
    return values[ids.shape[1] - 1 - span.n_scored : -1].tolist() if span.n_scored else []


def test_three_words_at_two_positions() -> None:
    """p = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4): KL(p||q) = 1/2 ln 2 + 1/4 ln 1/2 + 0 = ln 2 / 4. p = (1/2, 1/2, 0)
    and q = (1/4, 1/4, 1/2): ln 2, and back (q||p) infinite, for q writes a word that p never does. Logits are the logs
    of the probabilities and any constant."""
    p = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]).log() + 3
    q = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]).log() - 1
    before = p.clone(), q.clone()
    assert kl_of_logits(p, q).reverse.tolist() == pytest.approx([math.log(2) / 4, math.log(2)], abs=1e-7)
    assert kl_of_logits(p, q).forward.tolist() == [pytest.approx(math.log(2) / 4, abs=1e-7), math.inf]
    assert kl_of_logits(q, p).reverse[1] == math.inf
    assert [values.tolist() for values in kl_of_logits(p, p)] == [[0, 0], [0, 0]]
    assert kl_of_logits(p, q).reverse.dtype == torch.float64
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])


def test_reverse_and_forward_are_not_the_same() -> None:
    """p = (3/4, 1/4), q = (1/4, 3/4) are mirrored: both ways 3/4 ln 3 - 1/4 ln 3 = ln 3 / 2. p = (1/2, 1/2) and
    q = (1/8, 7/8) are not: KL(p||q) = 1/2 ln 4 + 1/2 ln 4/7 = ln(16/7) / 2 = .41334; KL(q||p) = 1/8 ln 1/4 +
    7/8 ln 7/4 = .31638. Policy comes first: the reverse one is KL(policy || reference)."""
    p, q = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75], [0.125, 0.875]]).log()
    found = kl_of_logits(p, q)
    assert found.reverse.tolist() == pytest.approx([math.log(3) / 2, math.log(16 / 7) / 2], abs=1e-7)
    assert found.forward.tolist() == pytest.approx([math.log(3) / 2, 0.31638], abs=5e-6)


@pytest.mark.parametrize("columns", [3, 64, 1024])
def test_tiles_give_what_whole_softmaxes_give(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """200 tokens in tiles of 3, 64 and all, of heads with bias, scale and cap; one model never writes tokens 0 to 9,
    more than a tile of 3 holds, and the other neither writes 0 to 4."""
    monkeypatch.setattr(head_tiles, "COLUMNS", columns)
    draw = torch.Generator().manual_seed(0)
    shape = Shape(0.5, 20.0)

    def head(never: int) -> HeadInput:
        hidden, weight, bias = (torch.randn(*size, generator=draw) for size in ((7, 16), (200, 16), (200,)))
        bias[:never] = -torch.inf
        return HeadInput(4 * hidden, weight, bias, Shape(0.5) if never else shape)

    policy, reference, other = head(10), head(5), head(0)
    for first, second in ((policy, reference), (reference, policy), (policy, other), (other, other)):
        z, w = (h.shape.apply((h.hidden @ h.weight.T + h.bias).double()) for h in (first, second))
        log_p, log_q = z.log_softmax(-1), w.log_softmax(-1)
        both = kl_of_inputs(first, second)
        for value, (a, b) in zip(both, ((log_p, log_q), (log_q, log_p)), strict=True):
            wanted = torch.where(a == -torch.inf, 0.0, a.exp() * (a - b)).sum(-1).clamp(min=0)
            assert value.tolist() == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-6)
    assert kl_of_inputs(policy, other).forward.isinf().all() and kl_of_inputs(policy, other).reverse.isfinite().all()
    with pytest.raises(DiagError, match="another vocabulary"):
        kl_of_inputs(policy, replace(policy, weight=policy.weight[:199]))
    broken = replace(other, hidden=other.hidden * torch.tensor([1.0] * 6 + [torch.nan])[:, None])
    assert kl_of_inputs(broken, other).reverse.isnan().tolist() == [False] * 6 + [True]


@pytest.mark.parametrize("logits", [1, 3 * 300, 2**22])
def test_two_models_and_any_chunk(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    """One position at once, three, all: the same. Nothing is scored of no tokens, and nothing predicts the first token
    of a text."""
    monkeypatch.setattr(module, "LOGITS", logits)
    policy, reference = make_model(1).train(), make_model(2)
    before = torch.get_rng_state()
    found = score_kl(policy, reference, SPANS, batch_size=2)
    assert [len(values) for values in found] == [2, 4, 1, 0]
    assert policy.training and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and p.requires_grad for p in policy.parameters())
    for values, span in zip(found, SPANS, strict=True):
        assert values.tolist() == pytest.approx(by_hand(policy, reference, span), rel=1e-4)
    assert min(map(float, np.concatenate(found))) > 0.01
    assert all((values == 0).all() for values in score_kl(policy, policy, SPANS))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_adapter_is_compared_with_its_base() -> None:
    """On the head, too: its logits are made with the adapter off."""
    base = make_model(1)
    wanted = copy.deepcopy(base)
    lora = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    policy = get_peft_model(base, lora)
    frozen = [p.requires_grad for p in policy.parameters()]
    for values, span in zip(score_kl(policy, None, SPANS), SPANS, strict=True):
        assert values.tolist() == pytest.approx(by_hand(policy, wanted, span), rel=1e-4)
    assert [p.requires_grad for p in policy.parameters()] == frozen


def test_another_vocabulary_is_refused() -> None:
    larger = make_model(2)
    larger.resize_token_embeddings(310)
    with pytest.raises(DiagError, match="another vocabulary"):
        score_kl(make_model(1), larger, SPANS)
