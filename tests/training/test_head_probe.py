"""Top-5 hits and greedy log-probs read inside the fused head: every tiling, both layouts, nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.kernels.chunked_logprob as kernel
import trl.trainer.utils as trl_utils
from trl.trainer.utils import add_fused_lm_head

from dpo_diag.training.head_probe import HeadProbe

from .tiny import make_model


def labels_of(ids: torch.Tensor, prompt: int) -> torch.Tensor:
    labels = ids.clone()
    labels[:, :prompt] = -100
    labels[0, -3:] = -100  # padding
    return labels


@pytest.mark.parametrize("columns", [32768, 100, 64])
@pytest.mark.parametrize("rows", [4096, 10])
def test_every_tiling_gives_the_same(monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> None:
    """300 tokens in tiles of 300, 3 x 100 or 64 + 64 + 64 + 64 + 44 columns, positions in one tile or in several."""
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", columns)
    monkeypatch.setattr(kernel, "TOKEN_CHUNK_SIZE", rows)
    model = make_model(4, scale=0.15)
    ids = torch.randint(2, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    # continue with likely tokens, so that hits and misses both occur
    ids[:, 1:] = logits.topk(9, dim=-1).indices[..., [0, 4, 5, 8, 1, 3, 6, 4, 5, 2, 7]][:, range(11), range(11)]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    labels = labels_of(ids, 4)
    mask = labels[:, 1:] != -100
    rank = (logits > logits.gather(-1, ids[:, 1:].unsqueeze(-1))).sum(-1)
    expected_top5, expected_greedy = (rank < 5) & mask, logits.log_softmax(-1).amax(-1) * mask
    assert 0 < expected_top5.sum() < mask.sum()

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    before = kernel._forward_tile, kernel._forward_kernel
    probe = HeadProbe(top5=True, greedy=True)
    with probe.listening(300):
        probe.expect(labels)
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        values = probe.take(output.label_mask)
        assert probe.take(output.label_mask) == {}  # one forward is read once
    assert (kernel._forward_tile, kernel._forward_kernel) == before
    assert torch.equal(values["top5"], expected_top5)
    assert torch.allclose(values["greedy_logp"], expected_greedy, atol=1e-5)
    plain = model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert torch.equal(plain.log_probs, output.log_probs)


def test_the_compact_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Triton the head projects labelled positions alone: the same rows, packed, must land where they belong."""
    monkeypatch.setattr(trl_utils, "_use_triton", lambda device: True)  # the layout of the call, the torch fold

    class TorchKernel:
        def __getitem__(self, grid: Any) -> Any:
            return torch_fold

    torch_fold = kernel._forward_tile
    monkeypatch.setattr(kernel, "_use_triton", lambda device: True)
    monkeypatch.setattr(kernel, "_forward_kernel", TorchKernel())
    model = make_model(4, scale=0.15)
    ids = torch.randint(2, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    labels = labels_of(ids, 4)
    mask = labels[:, 1:] != -100
    rank = (logits > logits.gather(-1, ids[:, 1:].unsqueeze(-1))).sum(-1)
    add_fused_lm_head(model)
    for columns in (32768, 100):
        monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", columns)
        probe = HeadProbe(top5=True, greedy=True)
        with probe.listening(300), torch.no_grad():
            probe.expect(labels)
            values = probe.take(model(input_ids=ids, labels=labels, fused_lm_head=True).label_mask)
        assert torch.equal(values["top5"], (rank < 5) & mask)
        assert torch.allclose(values["greedy_logp"], logits.log_softmax(-1).amax(-1) * mask, atol=1e-5)


def test_a_head_that_was_not_trls_gives_nothing() -> None:
    probe = HeadProbe(top5=True, greedy=True)
    probe._chunks = [{"sum_exp": torch.ones(7), "n": 7, "hit": torch.ones(7, dtype=torch.bool), "rows": None}]
    assert probe.take(torch.ones(2, 5, dtype=torch.bool)) == {}
    assert probe.take(torch.ones(2, 5, dtype=torch.bool)) == {}


def test_an_error_inside_leaves_no_wrapper() -> None:
    before = kernel._forward_tile
    with pytest.raises(RuntimeError, match="no"), HeadProbe(True, True).listening(300):
        assert kernel._forward_tile is not before
        raise RuntimeError("no")
    assert kernel._forward_tile is before


def test_unknown_metric() -> None:
    from dpo_diag.errors import DiagError
    from dpo_diag.training import DiagDPOTrainer

    with pytest.raises(DiagError, match=r"unknown extra metric.*top3"):
        DiagDPOTrainer(SimpleNamespace(), extra_metrics=["top3"])
