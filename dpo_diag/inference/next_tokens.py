"""Whole next-token distributions of two checkpoints, at a few positions of recorded answers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.data.pairs import Row
from dpo_diag.data.tokens import encode_pairs
from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import Checkpoint, Loader
from dpo_diag.models.logps import next_token_logps
from dpo_diag.records.conversation import parse_prompt
from dpo_diag.records.schemas import SIDES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NextTokens:
    """The next-token distributions of both checkpoints at P positions.

    Attributes:
        kept: index labels of the rows whose context could be rebuilt, in order.
        before, after: next-token log-probs (nats), (P, vocabulary) float32.
        scores: W (w_target - w_rival), W the earlier model's unembedding, for the kept rows with `theory`,
            (rows, vocabulary) float32.
        text_of: token id -> text.
    """

    kept: list[Any]
    before: FloatArray
    after: FloatArray
    scores: FloatArray
    text_of: Callable[[int], str]


def unembedding_scores(model: PreTrainedModel, targets: Sequence[int], rivals: Sequence[int]) -> FloatArray:
    """W (w_target - w_rival) for each pair of tokens, W the output embedding: (pairs, vocabulary) float32."""
    head: Any = model.get_output_embeddings()
    weight = head.weight.detach()
    difference = weight[list(targets)].float() - weight[list(rivals)].float()
    return np.asarray((difference @ weight.float().T).cpu().numpy(), dtype=np.float32)


def compare_at(
    earlier: Checkpoint,
    later: Checkpoint,
    positions: pd.DataFrame,
    texts: pd.DataFrame,
    *,
    loader: Loader | None = None,
    max_length: int | None = None,
    truncation_mode: str = "keep_start",
    batch_size: int = 8,
) -> NextTokens:
    """Load both checkpoints, one after the other, and ask each at the given positions.

    Args:
        positions: `pair_id`, `side`, `prefix` (response tokens before the position), `token_id`, `theory`, `rival`.
        texts: `pair_id`, `prompt`, `chosen`, `rejected`: the pairs' texts, from which prompts are tokenised anew.
        max_length, truncation_mode: as in the training or scoring that wrote the records.

    Raises:
        DiagError: a checkpoint that cannot be loaded, vocabularies of different sizes.
    """
    loader = loader or Loader()
    rows = texts.drop_duplicates("pair_id").set_index("pair_id")
    tokenizer = loader.tokenizer_of(later)
    prompts = _Prompts(tokenizer, rows, max_length, truncation_mode)
    contexts: list[list[int]] = []
    kept: list[Any] = []
    for label, row in positions.iterrows():
        prompt = prompts.of(str(row["pair_id"]), str(row["side"]), [*row["prefix"], int(row["token_id"])])
        if prompt is not None and (prompt or row["prefix"]):
            kept.append(label)
            contexts.append([*prompt, *row["prefix"]])
    asked = positions.loc[kept]
    theory = asked[asked["theory"].astype(bool)]
    with loader.open(earlier) as (model, _):
        before = next_token_logps(model, contexts, batch_size=batch_size)
        scores = unembedding_scores(model, theory["token_id"].tolist(), theory["rival"].tolist())
    with loader.open(later) as (model, _):
        after = next_token_logps(model, contexts, batch_size=batch_size)
    if before.shape != after.shape:
        raise DiagError("the two checkpoints have different vocabularies", where=f"{earlier.path} and {later.path}",
                        got=f"{before.shape[1]} and {after.shape[1]} tokens")  # fmt: skip
    return NextTokens(kept, before, after, scores, lambda token: str(tokenizer.decode([token])))


class _Prompts:
    """Prompt tokens of recorded answers: the texts are tokenised again and must give the recorded answer's tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: pd.DataFrame, max_length: int | None, truncation_mode: str
    ) -> None:
        self.tokenizer, self.rows, self.limits = tokenizer, rows, (max_length, truncation_mode)
        self.known: dict[str, list[tuple[dict[str, list[int]], dict[str, list[int]]]]] = {}

    def of(self, pair_id: str, side: str, begins: list[int]) -> list[int] | None:
        """Prompt tokens of an answer that begins with these tokens; None if no way of tokenising gives it."""
        if pair_id not in self.known:
            self.known[pair_id] = self._ways(pair_id)
        for prompt, response in self.known[pair_id]:
            if response[side][: len(begins)] == begins:
                return prompt[side]
        return None

    def _ways(self, pair_id: str) -> list[tuple[dict[str, list[int]], dict[str, list[int]]]]:
        if pair_id not in self.rows.index:
            return []
        row = self.rows.loc[pair_id]
        text = {name: str(row[name]) for name in ("prompt", *SIDES)}
        ways = []
        candidates: list[Row] = [text]
        if self.tokenizer.chat_template and (messages := parse_prompt(text["prompt"])) is not None:
            answers = {side: [{"role": "assistant", "content": text[side]}] for side in SIDES}
            candidates.insert(0, {"prompt": messages, **answers})
        for candidate in candidates:
            try:
                encoded = list(encode_pairs([candidate], self.tokenizer, *self.limits))
            except DiagError:
                continue
            ways += [(p.prompt, p.response) for p in encoded if p.dropped is None]
        return ways
