"""Preference pairs to token ids, exactly as TRL 1.16's DPOTrainer makes them.

Text responses get the end token if they lack it; messages go through the chat template. The response starts where the
tokenised prompt and the tokenised prompt + response part, at the smaller place of the two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpo_diag.data.pairs import Row
from dpo_diag.data.tokens import shared_prefix, tokenised
from dpo_diag.errors import DiagError
from dpo_diag.models.tokenizers import require_chat_template
from dpo_diag.records import make_pair_id
from dpo_diag.records.schemas import SIDES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPair:
    """One pair as the trainer's collator would see it, after truncation.

    Attributes:
        pair_id: content hash.
        prompt: side -> prompt tokens (the same for both unless keep_end cut them apart).
        response: side -> response tokens that the loss counts.
        n_truncated: side -> response tokens cut off.
    """

    pair_id: str
    prompt: dict[str, list[int]]
    response: dict[str, list[int]]
    n_truncated: dict[str, int]


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs that reach the loss, and why others do not: (pair_id, reason)."""

    pairs: list[EncodedPair]
    dropped: list[tuple[str, str]]


def encode_pairs(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
) -> EncodedPairs:
    """Token ids of pairs, in their order; a pair that occurs twice is kept once.

    Args:
        rows: dicts of prompt, chosen, rejected (all text or all messages) and, if known, pair_id.
        tokenizer: with a chat template where the rows are messages.
        max_length: tokens of prompt and response together; None for no limit.
        truncation_mode: "keep_start" cuts responses and drops pairs whose prompt fills max_length; "keep_end" cuts
            from the start.

    Raises:
        DiagError: a missing field, mixed kinds, an unknown mode, messages without a chat template.
    """
    if truncation_mode not in ("keep_start", "keep_end"):
        raise DiagError("unknown truncation mode", got=truncation_mode, expected="keep_start or keep_end")
    prepared: dict[str, Row] = {}
    for i, row in enumerate(rows):
        missing = [name for name in ("prompt", *SIDES) if not row.get(name)]
        if missing:
            raise DiagError(f"{missing[0]} is missing or empty", where=f"pair {i + 1}")
        if isinstance(row["prompt"], str) != isinstance(rows[0]["prompt"], str):
            raise DiagError("pairs are all text or all messages", where=f"pair {i + 1}", got="both")
        pair_id = row.get("pair_id") or make_pair_id(row["prompt"], row["chosen"], row["rejected"])
        prepared.setdefault(pair_id, row | {"pair_id": pair_id, "row": row.get("row", i)})
    kept = list(prepared.values())
    require_chat_template(tokenizer, "messages" if kept and not isinstance(kept[0]["prompt"], str) else "text")
    pairs, dropped = [], []
    for row, ids in tokenised(kept, tokenizer):
        if isinstance(ids, str):
            dropped.append((row["pair_id"], ids))
            continue
        prompt, with_chosen, with_rejected = ids
        n_prompt = min(shared_prefix(prompt, with_chosen), shared_prefix(prompt, with_rejected))
        if max_length is not None and truncation_mode == "keep_start" and n_prompt >= max_length:
            dropped.append((row["pair_id"], f"the prompt's {n_prompt} tokens fill max_length {max_length}"))
            continue
        encoded = EncodedPair(row["pair_id"], {}, {}, {})
        for side, whole in zip(SIDES, (with_chosen, with_rejected), strict=True):
            start = 0
            if max_length is not None:
                start = max(0, len(whole) - max_length) if truncation_mode == "keep_end" else 0
                whole_kept = whole[start:] if truncation_mode == "keep_end" else whole[:max_length]
            else:
                whole_kept = whole
            cut = max(0, n_prompt - start)
            encoded.prompt[side], encoded.response[side] = whole_kept[:cut], whole_kept[cut:]
            encoded.n_truncated[side] = len(whole) - n_prompt - len(whole_kept[cut:])
        if not all(encoded.response.values()):
            dropped.append((row["pair_id"], "a response has no tokens of its own"))
            continue
        pairs.append(encoded)
    return EncodedPairs(pairs, dropped)
