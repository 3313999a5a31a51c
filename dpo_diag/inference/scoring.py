"""A model on preference pairs, as rows of pairs/ and tokens/: one forward per response, nothing of TRL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.data.pairs import Row
from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.data.tokens import EncodedPair, encode_pairs
from dpo_diag.errors import DiagError
from dpo_diag.models.batches import padding_id
from dpo_diag.models.kl import Reference
from dpo_diag.models.logps import proved_way, score_tokens
from dpo_diag.models.packed.rows import ROW_TOKENS, Span
from dpo_diag.models.packed.verify import Proved, SharedPrefix
from dpo_diag.models.packed.ways import Way
from dpo_diag.models.token_scores import TokenScores
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES, TABLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairTokens:
    """Pairs as token ids, and what scoring needs of their tokenizer: made once for all checkpoints that share it.

    Attributes:
        pairs: those that reach the loss.
        dropped: (pair_id, reason) of the others.
        n_bytes: UTF-8 bytes of each token id, (vocabulary,).
        begin: the begin token, if the tokenizer has one: what a response without its prompt stands behind.
        pad_id: what fills shorter sequences.
    """

    pairs: list[EncodedPair]
    dropped: list[tuple[str, str]]
    n_bytes: npt.NDArray[np.int32]
    begin: list[int]
    pad_id: int

    @property
    def places(self) -> list[tuple[EncodedPair, str]]:
        """(pair, side) of every response, in the order of the rows."""
        return [(pair, side) for pair in self.pairs for side in SIDES]

    @property
    def spans(self) -> list[Span]:
        """The responses behind their prompts, in the order of `places`."""
        return [Span(pair.prompt[side], pair.response[side]) for pair, side in self.places]

    @classmethod
    def of(
        cls,
        pairs: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = 1024,
        truncation_mode: str = "keep_start",
    ) -> PairTokens:
        """Dicts of prompt, chosen, rejected and, if known, pair_id (`data.pairs.PairSet.rows`), tokenised as training
        does; `max_length` and `truncation_mode` are the training's, or the numbers are another question's.

        Raises:
            DiagError: see `encode_pairs`; no pair left.
        """
        encoded = list(encode_pairs(pairs, tokenizer, max_length, truncation_mode))
        kept = [pair for pair in encoded if pair.dropped is None]
        dropped = [(pair.pair_id, ": ".join(pair.dropped)) for pair in encoded if pair.dropped is not None]
        if not kept:
            reason = dropped[0][1] if dropped else "there are none"
            raise DiagError("no pair to score", got=reason, hint="check the pairs and max_length")
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return cls(kept, dropped, token_bytes(tokenizer), begin, padding_id(tokenizer))


@dataclass
class Scores:
    """What `score_pairs` measures.

    Attributes:
        pairs, tokens: rows of these tables; `tokens` is empty if not asked for.
        ches: one row per pair (pair_id, ches, ln_ches, n_chosen, n_rejected), if asked for.
        proved: how shared prompts were computed.
    """

    pairs: pd.DataFrame
    tokens: pd.DataFrame
    ches: pd.DataFrame | None
    proved: Proved


def score_pairs(
    model: PreTrainedModel,
    encoded: PairTokens,
    *,
    step: int,
    split: str = EVAL_SPLIT,
    role: str = "policy",
    batch_size: int = 16,
    shared_prefix: SharedPrefix | Proved = "auto",
    row_tokens: int = ROW_TOKENS,
    tokens: bool = True,
    no_prompt: bool = False,
    hidden: bool = False,
    against: Reference | None = None,
    progress: bool = True,
) -> Scores:
    """Rows of pairs/ and tokens/ for one model on fixed pairs; modes, random state and configs are left as they were.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped, on its device.
        encoded: the pairs under its tokenizer.
        step, split, role: written into the rows.
        batch_size: responses in one forward, where they are not packed into rows.
        shared_prefix: auto computes what the responses of a prompt share once where this model was proved to allow it
            (see `packed.verify.prove`); on insists; off computes every response whole; or what was proved before, for
            a model of the same architecture on these pairs.
        row_tokens: tokens in one packed row.
        tokens: also give a row per response token.
        no_prompt: also score each response without its prompt (tokens' `logp_no_prompt`): a second, shorter forward.
            The first token is null unless the tokenizer has a begin token to predict it from.
        against: also give the KL from this reference at every token, both ways.
        hidden: also give CHES of each pair (Razin et al. 2024, arXiv 2410.08847): meant for the reference model.
        progress: show a bar.

    Raises:
        DiagError: `on`, and this model cannot.
    """
    from tqdm.auto import tqdm

    places, spans = encoded.places, encoded.spans
    bare = [Span(encoded.begin, span.response) for span in spans] if no_prompt and tokens else []
    if isinstance(shared_prefix, Proved):
        proved = shared_prefix
    else:
        way = Way(batch_size=batch_size, row_tokens=row_tokens, pad_id=encoded.pad_id)
        proved = proved_way(model, spans, way, shared_prefix)
    title = f"scoring, step {step}, {role}"
    with tqdm(total=len(spans) + len(bare), desc=title, unit="response", disable=not progress) as bar:
        measured = score_tokens(model, spans, way=proved.way, hidden=hidden, against=against, done=bar.update)
        alone = score_tokens(model, bare, way=proved.way, done=bar.update)
    head: dict[str, Any] = {"step": step, "split": split, "role": role}
    pair_rows = [head | _pair_row(*place, own, encoded.n_bytes) for place, own in zip(places, measured, strict=True)]
    token_rows = pd.DataFrame(columns=TABLES["tokens"].names)
    if tokens:
        bare_scores: Sequence[TokenScores | None] = alone or [None] * len(places)
        rows = [_token_rows(*place, own, bare) for place, own, bare in zip(places, measured, bare_scores, strict=True)]
        token_rows = pd.concat(rows, ignore_index=True).assign(**head)
    return Scores(pd.DataFrame(pair_rows), token_rows, _ches(encoded.pairs, measured) if hidden else None, proved)


def _pair_row(pair: EncodedPair, side: str, own: TokenScores, bytes_of: npt.NDArray[np.int32]) -> dict[str, Any]:
    # A response without any prompt before it (keep_end can cut it all) has a first token that nothing predicts.
    scored = len(own.logp)
    ids = pair.response[side][len(pair.response[side]) - scored :]
    return {
        "pair_id": pair.pair_id,
        "side": side,
        "sum_logp": float(own.logp.sum()),
        "n_tokens": scored,
        "n_bytes": int(bytes_of[ids].sum()),
        "n_truncated": pair.n_truncated[side],
        "top1": float((own.rank < 1).mean()) if scored else math.nan,
        "top5": float((own.rank < 5).mean()) if scored else math.nan,
        "entropy_sum": float(own.entropy.sum()),
        "greedy_logp_sum": float(own.greedy.sum()),
        **({} if own.kl is None else {"kl_reverse_sum": own.kl[0].sum(), "kl_forward_sum": own.kl[1].sum()}),
    }


def _token_rows(pair: EncodedPair, side: str, own: TokenScores, alone: TokenScores | None) -> pd.DataFrame:
    n, ids = len(own.logp), pair.response[side]
    rows: dict[str, Any] = {
        "pair_id": pair.pair_id,
        "side": side,
        "position": np.arange(n, dtype=np.int32),
        "token_id": np.array(ids[len(ids) - n :], dtype=np.int32),
        "logp": own.logp.astype(np.float32),
        "entropy": own.entropy.astype(np.float32),
        "is_top1": own.rank < 1,
        "greedy_logp": own.greedy.astype(np.float32),
    }
    if own.kl is not None:
        rows["kl_reverse"], rows["kl_forward"] = (values.astype(np.float32) for values in own.kl)
    if alone is not None:
        # The bare response may lack its first token's score; an object column, since NaN would be kept as a value.
        values = [None] * (len(ids) - len(alone.logp)) + [float(v) for v in alone.logp]
        rows["logp_no_prompt"] = pd.array(values[len(ids) - n :], dtype=object)
    return pd.DataFrame(rows)


def _ches(pairs: Sequence[EncodedPair], measured: Sequence[TokenScores]) -> pd.DataFrame:
    """CHES = <S+, S-> - |S+|^2 and its length-normalised form <S+, S->/(n+ n-) - |S+|^2/n+^2, S = sum of hidden states
    that predict the response's tokens (from the last prompt token to the last but one of the response)."""
    rows = []
    for pair, chosen, rejected in zip(pairs, measured[::2], measured[1::2], strict=True):
        assert chosen.hidden is not None and rejected.hidden is not None
        n, m = max(1, len(chosen.logp)), max(1, len(rejected.logp))
        inner, norm = float(chosen.hidden @ rejected.hidden), float(chosen.hidden @ chosen.hidden)
        rows.append((pair.pair_id, inner - norm, inner / (n * m) - norm / n**2, n, m))
    return pd.DataFrame(rows, columns=["pair_id", "ches", "ln_ches", "n_chosen", "n_rejected"])


def answer_logp(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outputs: pd.DataFrame,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> pd.Series[float]:
    """Log-prob (nats) of answers that another model or step wrote, under this model: on the index of `outputs`.

    Old answer under the new model, and the reverse: whether what the model used to say became unlikely, or only
    second best. Needs `prompt` (text as the model saw it) and `token_ids`; the tokenizer must be the same.
    """
    from tqdm.auto import tqdm

    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    spans = []
    for prompt, ids in zip(outputs["prompt"], outputs["token_ids"], strict=True):
        # The prompt column is rendered text, so special tokens that a chat template wrote stand in it as text: a plain
        # prompt was tokenised with special tokens, a rendered chat already holds its begin token.
        bare = list(tokenizer(str(prompt), add_special_tokens=False)["input_ids"])
        rendered = bool(begin) and bare[:1] == begin
        spans.append(Span(bare if rendered else list(tokenizer(str(prompt))["input_ids"]), [int(t) for t in ids]))
    with tqdm(total=len(spans), unit="answer", disable=not progress) as bar:
        way = Way(batch_size=batch_size, pad_id=padding_id(tokenizer))
        scores = score_tokens(model, spans, way=way, done=bar.update)
    return pd.Series([own.logp.sum() for own in scores], index=outputs.index, dtype=float)
