"""Pairs to token ids against TRL's own tokenisation rules, by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dpo_diag.data.tokens import encode_pairs
from dpo_diag.data.trained_tokens import PROMPT_FILLS
from dpo_diag.errors import DiagError

from .conftest import make_tokenizer
from .test_scoring import CHAT, PAIRS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def test_encoding_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    """Byte-level: "no" is 2 tokens and the end token makes 3; "é" is 2 bytes."""
    encoded = list(encode_pairs(PAIRS, tokenizer, None))
    first = encoded[0]
    assert tokenizer.decode(first.prompt["chosen"]) == "Q: one? "
    assert first.response["rejected"] == [*tokenizer("no")["input_ids"], 1]
    assert [len(p.response["chosen"]) for p in encoded] == [9, 3, 19]
    assert [p.dropped for p in encoded] == [None, None, None]
    cut = list(encode_pairs(PAIRS, tokenizer, 12))
    assert [p.dropped for p in cut] == [None, (PROMPT_FILLS, "35 tokens"), None]
    assert [p.n_truncated for p in cut[::2]] == [{"chosen": 5, "rejected": 0}, {"chosen": 14, "rejected": 0}]
    end = next(encode_pairs(PAIRS[:1], tokenizer, 10, "keep_end"))
    assert len(end.prompt["chosen"]) == 1 and len(end.prompt["rejected"]) == 7 and len(end.response["chosen"]) == 9
    assert len(list(encode_pairs([PAIRS[0], dict(PAIRS[0])], tokenizer))) == 1


def test_encoding_of_messages_and_refusals(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = next(encode_pairs(CHAT, tokenizer))
    assert tokenizer.decode(pair.prompt["chosen"]) == "<|user|>hi<|assistant|>"
    assert tokenizer.decode(pair.response["chosen"]) == "hello<eos>"
    with pytest.raises(DiagError, match="rejected is missing"):
        next(encode_pairs([{"prompt": "a", "chosen": "b"}], tokenizer))
    with pytest.raises(DiagError, match="all text or all messages"):
        next(encode_pairs([*PAIRS, *CHAT], tokenizer))
    with pytest.raises(DiagError, match="chat template"):
        next(encode_pairs(CHAT, make_tokenizer(chat=False)))
    with pytest.raises(DiagError, match="keep_start or keep_end"):
        next(encode_pairs(PAIRS, tokenizer, truncation_mode="middle"))
