"""Tiles of logits against a float64 log-softmax over all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpo_diag.models import head_tiles as module
from dpo_diag.models.head import Head, Seen
from dpo_diag.models.head_tiles import Shape
from dpo_diag.models.token_scores import token_scores
from tests.inference.conftest import make_model

N, VOCABULARY = 40, 258


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 positions and 50 tokens: the last of each is smaller."""
    monkeypatch.setattr(module, "TILE", 7 * 50)
    monkeypatch.setattr(module, "COLUMNS", 50)


def material(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 32, generator=generator), torch.randint(0, VOCABULARY, (N,), generator=generator)


def scores_of(head: Head, seen: Seen, targets: torch.Tensor, **more: Any) -> Any:
    with torch.no_grad():
        (own,) = token_scores(head, seen, targets, np.array([len(targets)]), **more)
    return own


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
def test_numbers_of_a_float64_log_softmax(tiled: bool, scale: float, softcap: float | None) -> None:
    model = make_model()
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
    head = Head(model)
    head.is_tiled, head.shape = tiled, Shape(scale, softcap, in_own_type=True)
    hidden, targets = material()
    own = scores_of(head, Seen(hidden, None), targets, n_likeliest=4, hidden=True)
    with torch.no_grad():
        logits = (model.lm_head(hidden) * scale).double()
        logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    logp = logits.log_softmax(-1)
    wanted = logp.gather(1, targets[:, None])
    assert np.allclose(own.logp, wanted.squeeze(1), atol=1e-5)
    assert np.allclose(own.entropy, -(logp.exp() * logp).sum(-1), atol=1e-5)
    assert np.allclose(own.greedy, logp.amax(-1), atol=1e-5)
    assert own.rank.tolist() == (logp > wanted).sum(-1).tolist()
    top = logp.topk(4, dim=-1)
    assert [[token for token, _ in best] for best in own.likeliest] == top.indices.tolist()
    assert np.allclose([[p for _, p in best] for best in own.likeliest], top.values, atol=1e-5)
    assert own.hidden is not None and np.allclose(own.hidden, hidden.sum(0), atol=1e-4)


def test_a_rank_is_counted_again_where_the_targets_logit_was_guessed_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows of the head give equal logits, which are not above the target's however it was rounded elsewhere."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[1::2] = model.lm_head.weight[::2]
    head, (hidden, targets) = Head(model), material()
    with torch.no_grad():
        logits = model.lm_head(hidden)
    expected = (logits > logits.gather(1, targets[:, None])).sum(-1).tolist()
    assert scores_of(head, Seen(hidden, None), targets).rank.tolist() == expected
    of_tokens = Head.of_tokens
    monkeypatch.setattr(Head, "of_tokens", lambda *args: of_tokens(*args) - 1e-3)
    assert scores_of(head, Seen(hidden, None), targets).rank.tolist() == expected


def test_tokens_that_cannot_come_add_nothing() -> None:
    """A head that gives half of its tokens a logit of minus infinity: the entropy is that of the other half."""
    model = make_model()
    bias = torch.zeros(VOCABULARY)
    bias[VOCABULARY // 2 :] = -torch.inf
    model.lm_head.bias = torch.nn.Parameter(bias)
    hidden, targets = material()
    with torch.no_grad():
        logits = model.lm_head(hidden)[:, : VOCABULARY // 2].double()
    own = scores_of(Head(model), Seen(hidden, None), targets % (VOCABULARY // 2))
    assert np.allclose(own.entropy, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5)


@pytest.mark.parametrize("doubled", [False, True])
def test_every_forward_proves_that_the_logits_are_the_heads(doubled: bool) -> None:
    """A model that doubles its logits is found out at the first forward, and its own are used at all positions."""
    model = make_model()
    if doubled:
        model.register_forward_hook(lambda m, args, out: out.__setattr__("logits", out.logits * 2) or out)
    head, ids = Head(model), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        seen = head.see(torch.tensor([1, 2, 6]), input_ids=ids)
        own = model(ids).logits.flatten(0, 1)[[1, 2, 6]]
        assert (seen.logits is not None) == doubled
        assert torch.allclose(head.logits(seen), own, atol=1e-5)
