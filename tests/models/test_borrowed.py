"""A borrowed model comes back as it was, also after an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dpo_diag.models.borrowed import borrowed
from tests.inference.conftest import make_model, make_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def test_an_error_leaves_no_trace() -> None:
    model: LlamaForCausalLM = make_model()
    tokenizer = make_tokenizer()
    model.train()
    model.model.layers[0].eval()
    model.model.gradient_checkpointing = True
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), borrowed(model, tokenizer):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled() and not model.model.gradient_checkpointing
        tokenizer.padding_side = "left"
        torch.rand(3)
        model.train()
        model.config.use_cache = False
        raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (tokenizer.padding_side, model.config.use_cache) == ("right", True)
    assert model.model.gradient_checkpointing and torch.is_grad_enabled()
