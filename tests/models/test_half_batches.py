"""A forward that runs out of memory: what is left goes through in half batches, once, and the numbers are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpo_diag.models import head
from dpo_diag.models.decoding import Decoding, _Decoder, write_answers
from dpo_diag.models.logps import score_tokens
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.packed.ways import Way
from tests.training.tiny import make_model, make_tokenizer

SPANS = [Span([2, 3, 4 + i], [5 + i, 6, 7 + i][: 1 + i % 3]) for i in range(9)]


def with_room_for(monkeypatch: pytest.MonkeyPatch, tokens: int, calls: list[int]) -> None:
    """Forwards of more tokens raise what torch raises on a GPU."""
    see = head.Head.see

    def limited(self: Any, where: Any, **inputs: Any) -> Any:
        calls.append(inputs["input_ids"].numel())
        if calls[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return see(self, where, **inputs)

    monkeypatch.setattr(head.Head, "see", limited)


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_the_rest_is_scored_in_half_batches_to_the_same_numbers(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 sequences of at most 6 tokens, or rows of 24: with room for 12 they fail; 2 sequences, or rows of 12
    tokens, pass."""
    model, said, calls = make_model(1), [], []
    way = Way(name, batch_size=4, row_tokens=24)
    whole = score_tokens(model, SPANS, way=way)
    with_room_for(monkeypatch, 12, calls)
    half = score_tokens(model, SPANS, way=way, say=said.append)
    for a, b in zip(whole, half, strict=True):
        assert np.allclose(a.logp, b.logp, atol=1e-5) and np.allclose(a.entropy, b.entropy, atol=1e-5)
        assert (a.rank == b.rank).all()
    size = "12 tokens a row" if name == "packed" else "2 at once"
    assert said == [f"out of memory: 9 of 9 responses are scored in half batches, {size}"]
    assert calls[0] > 12 >= max(calls[1:])


def test_what_was_scored_before_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch of 4 fails once, whatever its size: 5 of 9 are left."""
    model, said, n = make_model(1), [], []
    whole, see = score_tokens(model, SPANS, way=Way(batch_size=4)), head.Head.see

    def once(self: Any, where: Any, **inputs: Any) -> Any:
        n.append(1)
        if len(n) == 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
        return see(self, where, **inputs)

    monkeypatch.setattr(head.Head, "see", once)
    half = score_tokens(model, SPANS, way=Way(batch_size=4), say=said.append)
    assert all(np.allclose(a.logp, b.logp, atol=1e-5) for a, b in zip(whole, half, strict=True))
    assert said[0].startswith("out of memory: 5 of 9 responses") and len(n) == 2 + 3


def test_twice_or_one_sequence_at_once_is_an_error_and_any_other_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, said = make_model(1), [], []
    with_room_for(monkeypatch, 1, calls)
    with pytest.raises(torch.OutOfMemoryError):
        score_tokens(model, SPANS, way=Way(batch_size=4), say=said.append)
    assert len(calls) == 2 and len(said) == 1
    with pytest.raises(torch.OutOfMemoryError):
        score_tokens(model, SPANS, way=Way(batch_size=1), say=said.append)
    assert len(calls) == 3 and len(said) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_answers_are_written_on_in_half_batches(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """7 prompts, 2 answers of each, 8 answers at once: 4 prompts pass, 3 fail, and pass as 2 and 1. Batches of one
    prompt are not halved, nor is any twice."""
    model, tokenizer, sizes = make_model(1), make_tokenizer(), []
    prompts, decoding = [[2, 3, 4 + i] for i in range(7)], Decoding(max_new_tokens=3, n_samples=1)
    whole = write_answers(model, tokenizer, prompts, decoding, batch_size=8, progress=False)
    decode = _Decoder.decode

    def limited(self: Any, prompts: Any, names: Any) -> Any:
        sizes.append(len(prompts))
        if len(sizes) in fails:
            raise error
        return decode(self, prompts, names)

    monkeypatch.setattr(_Decoder, "decode", limited)
    fails = {2}
    half = write_answers(model, tokenizer, prompts, decoding, batch_size=8, progress=False)
    assert [[a.token_ids for a in one] for one in half] == [[a.token_ids for a in one] for one in whole]
    assert sizes == [4, 3, 2, 1]
    assert capsys.readouterr().err == "out of memory: 3 of 7 prompts are answered in half batches, 2 at once\n"
    for batch_size, failing, tried in ((8, {1, 2}, [4, 2]), (2, {1}, [1])):
        sizes.clear()
        fails = failing
        with pytest.raises(type(error)):
            write_answers(model, tokenizer, prompts, decoding, batch_size=batch_size, progress=False)
        assert sizes == tried
