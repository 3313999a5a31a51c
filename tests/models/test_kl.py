"""KL of two distributions over a vocabulary, derived by hand, and of two models against their whole softmaxes."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from dpo_diag.errors import DiagError
from dpo_diag.models import kl as module
from dpo_diag.models.kl import kl_of_logits, score_kl
from dpo_diag.models.packed.rows import Span
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
    assert kl_of_logits(p, q).tolist() == pytest.approx([math.log(2) / 4, math.log(2)], abs=1e-7)
    assert kl_of_logits(q, p)[1] == math.inf
    assert kl_of_logits(p, p).tolist() == [0, 0]
    assert kl_of_logits(p, q).dtype == torch.float64


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
