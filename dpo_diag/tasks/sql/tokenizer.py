"""The task's tokenizer: a byte-level BPE of some 768 tokens, the same bytes at each training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 768
# Special strings that no question, query or ordinary text contains.
PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|eos|>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`.

    Every digit is a token of its own (numbers are copied, not memorised), all 256 bytes are tokens (any UTF-8 text
    without the special strings round-trips), pad is 0 and end-of-text 1; there is no begin-of-text token, since every
    prompt starts with a database's name. Deterministic: the same texts in the same order give the same files.

    Args:
        texts: prompts followed by their answers, as the model will read them.
        vocab_size: at least 258 (the bytes and the two special tokens); fewer merges in `texts` give fewer tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD_TOKEN, EOS_TOKEN)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
