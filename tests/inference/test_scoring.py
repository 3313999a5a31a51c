"""Scoring against a plain per-pair loop, and against TRL's own tokenisation rules by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dpo_diag.data.tokens import encode_pairs
from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import generate
from dpo_diag.inference.scoring import PairTokens, answer_logp, score_pairs
from dpo_diag.models import head_tiles
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.kl import Reference
from dpo_diag.records.schemas import TABLES
from dpo_diag.records.writer import to_arrow

from .conftest import make_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAIRS: list[dict[str, Any]] = [
    {"prompt": "Q: one? ", "chosen": "yes, one", "rejected": "no"},
    {"prompt": "a rather longer prompt than before ", "chosen": "é", "rejected": "a much longer rejected answer"},
    {"prompt": "你好 ", "chosen": "您好，请放心", "rejected": "嗨"},
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "hello"}],
        "rejected": [{"role": "assistant", "content": "go away"}],
    }
]


def plain(model: LlamaForCausalLM, prompt: list[int], response: list[int]) -> dict[str, np.ndarray]:
    """One sequence, no padding, float64 log-softmax over everything."""
    with torch.no_grad():
        out = model(torch.tensor([prompt + response]), output_hidden_states=True)
        logp = out.logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
    target = torch.tensor(response)
    own = logp.gather(1, target[:, None]).squeeze(1)
    return {
        "logp": own.numpy(),
        "entropy": -(logp.exp() * logp).sum(-1).numpy(),
        "greedy": logp.max(-1).values.numpy(),
        "rank": (logp > own[:, None]).sum(-1).numpy(),
        "hidden": out.hidden_states[-1][0, len(prompt) - 1 : -1].double().sum(0).numpy(),
    }


@pytest.mark.parametrize(("batch_size", "shared_prefix"), [(1, "off"), (4, "off"), (64, "off"), (4, "on")])
def test_scores_equal_a_plain_loop(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int,
    shared_prefix: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_tiles, "TILE", 700)  # a response spans several tiles, and so does the vocabulary
    monkeypatch.setattr(head_tiles, "COLUMNS", 100)
    model.train()
    state = torch.get_rng_state()
    scores = score_pairs(
        model, PairTokens.of(PAIRS, tokenizer), step=5, batch_size=batch_size, shared_prefix=shared_prefix,
        no_prompt=True, hidden=True, progress=False,
    )  # fmt: skip
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    encoded = list(encode_pairs(PAIRS, tokenizer))
    by_key = scores.pairs.set_index(["pair_id", "side"])
    token_rows = scores.tokens.set_index(["pair_id", "side"])
    hidden = {}
    for pair in encoded:
        for side in ("chosen", "rejected"):
            want = plain(model, pair.prompt[side], pair.response[side])
            hidden[pair.pair_id, side] = want["hidden"]
            row = by_key.loc[(pair.pair_id, side)]
            assert row["sum_logp"] == pytest.approx(want["logp"].sum(), abs=1e-4)
            assert row["entropy_sum"] == pytest.approx(want["entropy"].sum(), abs=1e-4)
            assert row["greedy_logp_sum"] == pytest.approx(want["greedy"].sum(), abs=1e-4)
            assert row["n_tokens"] == len(pair.response[side])
            assert row["top1"] == (want["rank"] == 0).mean()
            assert row["top5"] == (want["rank"] < 5).mean()
            own = token_rows.loc[(pair.pair_id, side)]
            assert np.allclose(own["logp"], want["logp"], atol=1e-5)
            assert own["token_id"].tolist() == pair.response[side]
            assert own["is_top1"].tolist() == (want["rank"] == 0).tolist()
            alone = plain(model, pair.response[side][:1], pair.response[side][1:])["logp"]
            assert own["logp_no_prompt"].isna().tolist() == [True] + [False] * len(alone)
            assert np.allclose(own["logp_no_prompt"].iloc[1:].astype(float), alone, atol=1e-5)
    first = encoded[0]
    plus, minus = hidden[first.pair_id, "chosen"], hidden[first.pair_id, "rejected"]
    assert scores.ches is not None
    row = scores.ches.set_index("pair_id").loc[first.pair_id]
    assert row["ches"] == pytest.approx(plus @ minus - plus @ plus, rel=1e-4)
    assert row["ln_ches"] == pytest.approx(plus @ minus / (9 * 3) - plus @ plus / 81, rel=1e-4)
    # é is two bytes, the end token none.
    assert by_key.loc[(encoded[1].pair_id, "chosen"), "n_bytes"] == 2
    to_arrow(TABLES["pairs"], scores.pairs)
    assert to_arrow(TABLES["tokens"], scores.tokens)["logp_no_prompt"].null_count == 6


def test_scaled_logits_are_the_models_own(tokenizer: PreTrainedTokenizerFast) -> None:
    """A model that doubles its logits after the head: the plain head would give other numbers."""
    model = make_model()
    forward = type(model).forward

    class Doubled(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = forward(self, *args, **kwargs)
            out.logits = out.logits * 2
            return out

    model.__class__ = Doubled
    scores = score_pairs(model, PairTokens.of(PAIRS, tokenizer), step=0, progress=False)
    pair = next(encode_pairs(PAIRS, tokenizer))
    want = plain(model, pair.prompt["chosen"], pair.response["chosen"])
    assert scores.pairs.iloc[0]["sum_logp"] == pytest.approx(want["logp"].sum(), abs=1e-4)


def test_own_answers_have_the_logp_that_generation_recorded(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [{"id": "a", "prompt": "some"}, {"id": "b", "messages": [{"role": "user", "content": "hi"}]}]
    frame = generate(model, tokenizer, prompts, Decoding(8), step=0, progress=False)
    assert np.allclose(answer_logp(model, tokenizer, frame), frame["sum_logp"], atol=1e-4)
    assert not np.allclose(answer_logp(make_model(seed=1), tokenizer, frame), frame["sum_logp"], atol=0.5)


def test_nothing_to_score_is_one_line(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DiagError, match="no pair to score; got the prompt fills max_length: 8 tokens"):
        PairTokens.of(PAIRS[:1], tokenizer, max_length=3)


def test_kl_stands_in_pairs_and_tokens_both_ways(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Against whole float64 softmaxes, at the positions that predict the response, prompts and padding left out; shared
    prompts change nothing, and without a reference there is no column."""
    other = make_model(9)
    encoded = PairTokens.of(PAIRS, tokenizer)
    for way in ("off", "on"):
        found = score_pairs(
            model,
            encoded,
            step=1,
            against=Reference(model, other),
            shared_prefix=way,
            progress=False,  # type: ignore[arg-type]
        )
        for pair, side in encoded.places:
            ids, n = [*pair.prompt[side], *pair.response[side]], len(pair.response[side])
            with torch.no_grad():
                p, q = (m(torch.tensor([ids])).logits[0].double().log_softmax(-1)[-n - 1 : -1] for m in (model, other))
            frames = found.pairs, found.tokens
            of = [frame[(frame["pair_id"] == pair.pair_id) & (frame["side"] == side)] for frame in frames]
            for name, a, b in (("kl_reverse", p, q), ("kl_forward", q, p)):
                wanted = (a.exp() * (a - b)).sum(-1).tolist()
                assert of[1][name].tolist() == pytest.approx(wanted, rel=1e-4)
                assert of[0][f"{name}_sum"].item() == pytest.approx(sum(wanted), rel=1e-4)
    assert (found.tokens["kl_reverse"] - found.tokens["kl_forward"]).abs().max() > 1e-3
    assert "kl_reverse_sum" not in score_pairs(model, encoded, step=1, progress=False).pairs
