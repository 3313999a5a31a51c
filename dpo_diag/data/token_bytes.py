"""How many UTF-8 bytes each token of a vocabulary stands for: the denominator of bits per byte.

Additive over tokens, so that a response's bytes are a sum over its token ids, cuts inside a character included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _byte_alphabet() -> frozenset[str]:
    """The 256 printable stand-ins by which byte-level BPE (GPT-2) writes bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return frozenset([chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))])


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are written in the byte alphabet: seen on a text whose bytes and characters differ."""
    probe = " é\n"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(probe, add_special_tokens=False)["input_ids"])
    written = "".join(str(t) for t in tokens)
    return set(written) <= _byte_alphabet() and len(written) in (len(probe.encode()), len(probe.encode()) + 1)


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> npt.NDArray[np.int32]:
    """UTF-8 bytes of each token id's text, shape (max(size, vocabulary),); special tokens and unused ids count 0.

    A special token (end of text, a chat marker) is no text, so it adds nats but no bytes: the bytes are those of the
    text a reader sees, the same for every tokenizer. Byte-level BPE and byte-fallback tokens count exactly; a
    SentencePiece word mark counts as the space it stands for.

    Args:
        size: at least this many entries (the model's vocabulary may be padded beyond the tokenizer's).
    """
    vocabulary = tokenizer.get_vocab()
    counts = np.zeros(max([size or 0, *(i + 1 for i in vocabulary.values())]), dtype=np.int32)
    special = set(tokenizer.all_special_ids)
    added = {int(i): t for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    byte_level = _is_byte_level(tokenizer)
    for token, index in vocabulary.items():
        if index in special or (index in added and added[index].special):
            continue
        if index in added:
            counts[index] = len(str(added[index].content).encode())
        elif byte_level:
            counts[index] = len(token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            counts[index] = 1
        elif token.startswith("##"):
            counts[index] = len(token[2:].encode())
        else:
            counts[index] = len(token.replace("▁", " ").replace("</w>", " ").encode())
    return counts
