"""Preference pairs to token ids, exactly as TRL 1.16's DPOTrainer makes them, and what that cuts or drops.

Text responses get the end token if they lack it; messages go through the chat template. The response starts where the
tokens of the prompt alone and of prompt + response part, at the smaller place of the two sides. TRL drops a pair whose
prompt fills max_length without a word, and cuts responses in the collator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_diag.data.pairs import Row
from dpo_diag.data.trained_tokens import NO_TOKENS, PROMPT_FILLS, TrainedIds, called_name, has_empty_think, unseen_parts
from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.models.tokenizers import require_chat_template
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.records.schemas import SIDES
from dpo_diag.rows.pair import WHOLE, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 512

REFUSED = "the chat template refuses the messages"


class Dropped(NamedTuple):
    """Why a pair never reaches the loss: one of a few fixed phrases, and what is special here."""

    why: str
    detail: str


@dataclass(frozen=True)
class EncodedPair:
    """One pair as the trainer's collator would see it, after truncation.

    Attributes:
        row, pair_id: number in the source, content hash.
        prompt: side -> prompt tokens that are left (the same for both unless keep_end cut them apart).
        response: side -> response tokens that the loss counts.
        n_prompt: prompt tokens before the cut; n_merged: the prompt's last tokens that merge with the response and are
            left out; n_truncated: side -> response tokens cut off.
        unseen: keys of the responses' messages and of the row whose text the chat template leaves out.
        own_think: sides whose text begins with an empty think block in the data already.
        dropped: why it never reaches the loss; None if it does.
    """

    row: int
    pair_id: str
    prompt: dict[str, list[int]] = field(default_factory=lambda: {side: [] for side in SIDES})
    response: dict[str, list[int]] = field(default_factory=lambda: {side: [] for side in SIDES})
    n_prompt: int = 0
    n_merged: int = 0
    n_truncated: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    unseen: list[str] = field(default_factory=list)
    own_think: frozenset[str] = frozenset()
    dropped: Dropped | None = None

    def scored(self, side: str) -> list[int]:
        """The response's tokens that have a log-prob: nothing predicts the first without any prompt before it."""
        return self.response[side] if self.prompt[side] else self.response[side][1:]

    def trained(self, side: str) -> TrainedIds:
        """One side as the loss sees it."""
        return TrainedIds.of_pair(self.prompt[side], self.response[side], bool(self.n_truncated[side]))


def kind_of(rows: Sequence[Row]) -> str:
    """ "text", "messages" or "whole text", as the first row is; "text" for none."""
    if not rows or isinstance(rows[0]["prompt"], str):
        return "text" if not rows or rows[0]["prompt"] else WHOLE
    return "messages"


def with_ids(rows: Sequence[Row], given: GivenIds | None = None, sides: Sequence[str] = SIDES) -> list[Row]:
    """Rows with `pair_id` and `row`, in their order; a pair that occurs twice is kept once.

    Args:
        sides: the answers that a row must have; a row of one answer brings its id, and may lack a prompt.
        given: hears of ids that the rows bring and that stand for several pairs.

    Raises:
        DiagError: a missing field, text and messages in one set.
    """
    kept: dict[str, Row] = {}
    given = GivenIds() if given is None else given
    for i, row in enumerate(rows):
        missing = [name for name in ("prompt", *sides) if not row.get(name) and (name in sides or "rejected" in row)]
        if missing:
            raise DiagError(f"{missing[0]} is missing or empty", where=f"pair {i + 1}")
        if isinstance(row["prompt"], str) != isinstance(rows[0]["prompt"], str):
            raise DiagError("pairs are all text or all messages", where=f"pair {i + 1}", got="both")
        whole = {"rejected": "", **row}
        pair_id = given.own(row["pair_id"], whole) if row.get("pair_id") else pair_id_of(whole)
        kept.setdefault(pair_id, row | {"pair_id": pair_id, "row": row.get("row", i)})
    return list(kept.values())


def encode_pairs(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    sides: Sequence[str] = SIDES,
    trains_prompt: Callable[[Row], bool] = lambda row: False,
) -> Iterator[EncodedPair]:
    """Token ids of pairs, in their order, dropped ones included; a pair that occurs twice comes once.

    Args:
        rows: dicts of prompt, chosen, rejected (all text or all messages) and, if known, pair_id.
        tokenizer: with a chat template where the rows are messages.
        max_length: tokens of prompt and response together; None for no limit.
        truncation_mode: "keep_start" cuts responses and drops pairs whose prompt fills max_length; "keep_end" cuts
            from the start, the prompt first.
        sides: the answers that are trained: SFT trains chosen alone, the only one of a supervised row.
        trains_prompt: whether the loss counts tokens of a row's prompt, too: then a prompt that fills max_length is
            cut, and the row stays.

    Raises:
        DiagError: a missing field, mixed kinds, an unknown mode, messages without a chat template.
    """
    if truncation_mode not in ("keep_start", "keep_end"):
        raise DiagError("unknown truncation mode", got=truncation_mode, expected="keep_start or keep_end")
    kept = with_ids(rows, sides=sides)
    require_chat_template(tokenizer, kind_of(kept))
    for row, texts, ids in _tokenised(kept, tokenizer, sides):
        if isinstance(texts, str):
            yield EncodedPair(row["row"], row["pair_id"], dropped=Dropped(REFUSED, texts))
        else:
            own = frozenset(side for side in sides if has_empty_think(row[side]))
            encoded = cut(row, ids, max_length, truncation_mode)
            if encoded.dropped is not None and encoded.dropped.why == PROMPT_FILLS and trains_prompt(row):
                encoded = replace(encoded, dropped=None)
            yield replace(encoded, unseen=_unseen(row, texts, sides), own_think=own)


TokenIds = Sequence[list[int]]
"""Token ids of the prompt alone, of prompt + chosen, and, of a pair, of prompt + rejected."""


def cut(row: Row, ids: TokenIds, max_length: int | None, mode: str) -> EncodedPair:
    """A pair's tokens as the collator leaves them; `row` has `row` and `pair_id`."""
    prompt, *wholes = ids
    n_prompt = min(shared_prefix(prompt, whole) for whole in wholes)
    pair = EncodedPair(row["row"], row["pair_id"], n_prompt=n_prompt, n_merged=len(prompt) - n_prompt)
    for side, whole in zip(SIDES, wholes, strict=False):  # one answer is the chosen one
        limit = len(whole) if max_length is None else max_length
        start = max(0, len(whole) - limit) if mode == "keep_end" else 0
        left = whole[start : start + limit]
        prompt_left = max(0, n_prompt - start)
        pair.prompt[side], pair.response[side] = left[:prompt_left], left[prompt_left:]
        pair.n_truncated[side] = len(whole) - n_prompt - len(pair.response[side])
    dropped = None
    if any(len(whole) == n_prompt for whole in wholes):
        dropped = Dropped(NO_TOKENS, "the prompt's tokens hold it all")
    elif max_length is not None and mode == "keep_start" and n_prompt >= max_length:
        dropped = Dropped(PROMPT_FILLS, f"{n_prompt} tokens")
    return replace(pair, dropped=dropped)


def shared_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common prefix: of token ids, or of a text's characters."""
    if b[: len(a)] == a:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


Texts = tuple[str, ...]
"""The same as text."""


def _tokenised(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, sides: Sequence[str]
) -> Iterator[tuple[Row, Texts | str, TokenIds]]:
    """Each row with its texts, or with why its chat template refused, and their token ids; in batches, which fast
    tokenizers need."""
    from tqdm import tqdm

    with tqdm(total=len(rows), desc="tokenising", unit="pair", disable=len(rows) < 2000, leave=False) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            texts = [_texts(row, tokenizer, sides) for row in batch]
            flat = [text for entry in texts if not isinstance(entry, str) for text in entry]
            special = bool(batch) and isinstance(batch[0]["prompt"], str)
            ids = iter(tokenizer(flat, add_special_tokens=special)["input_ids"] if flat else [])
            for row, entry in zip(batch, texts, strict=True):
                yield row, entry, [] if isinstance(entry, str) else [next(ids) for _ in entry]
            bar.update(len(batch))


def _unseen(row: Row, texts: Texts, sides: Sequence[str]) -> list[str]:
    """Keys of a row's responses, and `tools`, that its rendered texts do not show."""
    if isinstance(row["prompt"], str):
        return []
    keys = [key for side, text in zip(sides, texts[1:], strict=True) for key in unseen_parts(row[side], text)]
    tools = row.get("tools")
    tools = parse_json(tools) if isinstance(tools, str) else tools or []
    if any(name not in texts[0] for name in map(called_name, tools if isinstance(tools, list) else [])):
        keys.append("tools")
    return list(dict.fromkeys(keys))


def _texts(row: Row, tokenizer: PreTrainedTokenizerBase, sides: Sequence[str]) -> Texts | str:
    """The prompt, and the prompt with each answer behind it, as text, or why the chat template refused."""
    if isinstance(row["prompt"], str):
        end = str(tokenizer.eos_token)
        answers = [row[side] if row[side].endswith(end) else row[side] + end for side in sides]
        return row["prompt"], *(row["prompt"] + answer for answer in answers)
    from jinja2 import TemplateError

    tools = row.get("tools")
    options: dict[str, Any] = {"tools": parse_json(tools) if isinstance(tools, str) else tools, "tokenize": False}
    options |= row.get("chat_template_kwargs") or {}
    try:
        return (
            str(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)),
            *(str(tokenizer.apply_chat_template(row["prompt"] + row[side], **options)) for side in sides),
        )
    except (TemplateError, TypeError, ValueError) as error:
        return shorten(f"{type(error).__name__}: {error}", 160)
