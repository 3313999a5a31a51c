"""A model on preference pairs, as rows of pairs/ and tokens/: one forward per response, nothing of TRL.

The LM head is applied at response positions only, a limited number at a time, so that prompts, padding and large
vocabularies cost nothing. This works for any causal LM whose logits are its output embedding applied to its last
hidden states; for others (scaled or soft-capped logits) the model's own logits at those positions are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dpo_diag.data.pairs import Row
from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.data.tokenizing import EncodedPair, encode_pairs
from dpo_diag.errors import DiagError
from dpo_diag.models.batches import forward_parameters
from dpo_diag.models.borrowed import borrowed
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES, TABLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LOGITS = 64 * 2**20
"""Logits held at once (elements): 256 MB in float32."""


@dataclass
class Scores:
    """What `score_pairs` found.

    Attributes:
        pairs, tokens: rows of these tables; `tokens` is empty if not asked for.
        dropped: (pair_id, reason) of pairs that do not reach the loss.
        ches: one row per pair (pair_id, ches, ln_ches, n_chosen, n_rejected), if asked for.
    """

    pairs: pd.DataFrame
    tokens: pd.DataFrame
    dropped: list[tuple[str, str]]
    ches: pd.DataFrame | None = None


@dataclass(frozen=True)
class _Sequence:
    pair: int
    side: str
    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass
class _Measured:
    """Per response token, float64 numpy arrays of one length; `hidden` is the sum over positions, (hidden,)."""

    logp: npt.NDArray[np.float64]
    entropy: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.float64] | None


class _Scorer:
    """Runs batches of sequences through one model."""

    def __init__(self, model: PreTrainedModel, pad_id: int, hidden: bool) -> None:
        self.model, self.pad_id, self.hidden = model, pad_id, hidden
        self.device = next(model.parameters()).device
        self.names = forward_parameters(model)
        self.head = model.get_output_embeddings()
        if self.head is None:
            raise DiagError("the model has no output embedding", got=type(model).__name__, expected="a causal LM")
        self.vocabulary = int(self.head.weight.shape[0])
        self.plain: bool | None = None

    @contextmanager
    def _head_sees(self, take: Any) -> Iterator[None]:
        handle = self.head.register_forward_pre_hook(lambda _, args: (take(args[0]), *args[1:]))
        try:
            yield
        finally:
            handle.remove()

    def measure(self, batch: Sequence[_Sequence]) -> list[_Measured]:
        """One forward over right-padded sequences; each response token is predicted from the position before it.

        A sequence without a prompt cannot predict its first token: its arrays are one shorter than the response.
        """
        width = max(len(s) for s in batch)
        ids = torch.full((len(batch), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        rows, columns, targets, counts = [], [], [], []
        for i, s in enumerate(batch):
            whole = [*s.prompt, *s.response]
            ids[i, : len(whole)] = torch.tensor(whole)
            mask[i, : len(whole)] = 1
            first = max(1, len(s.prompt))
            columns += list(range(first - 1, len(whole) - 1))
            targets += whole[first:]
            rows += [i] * (len(whole) - first)
            counts.append(len(whole) - first)
        ids, mask = ids.to(self.device), mask.to(self.device)
        where = (torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device))
        target = torch.tensor(targets, dtype=torch.long, device=self.device)
        if not targets:
            nothing = np.empty(0)
            return [_Measured(nothing, nothing, nothing, nothing.astype(np.int64), None) for _ in batch]
        kwargs: dict[str, Any] = {"attention_mask": mask}
        if "use_cache" in self.names:
            kwargs["use_cache"] = False
        kept: list[torch.Tensor] = []

        def take(hidden: torch.Tensor) -> torch.Tensor:
            kept.append(hidden[where])
            # One position is enough to see whether the logits are the plain head's; all, where they are not.
            return kept[0][None] if self.plain is False else kept[0][None, :1]

        with self._head_sees(take):
            own = self.model(input_ids=ids, **kwargs).logits[0]
        if not kept:
            raise DiagError("the model does not use its output embedding", got=type(self.model).__name__)
        if self.plain is None:
            plain = self.head(kept[0][:1])
            self.plain = plain.shape == own.shape and bool(
                torch.allclose(plain, own, rtol=1e-5, atol=1e-5, equal_nan=True)
            )
            if not self.plain:
                return self.measure(batch)
        chunk = max(1, MAX_LOGITS // self.vocabulary)
        parts = []
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            logits = (self.head(kept[0][span]) if self.plain else own[span]).float()
            parts.append(_reduce(logits, target[span]))
        logp, entropy, greedy, rank = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
        found, start = [], 0
        for n in counts:
            span = slice(start, start + n)
            hidden = kept[0][span].float().sum(0).double().cpu().numpy() if self.hidden else None
            found.append(_Measured(logp[span], entropy[span], greedy[span], rank[span], hidden))
            start += n
        return found


def _reduce(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(log-prob of the target, entropy, largest log-prob, number of tokens with a larger logit), each (positions,)."""
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    logp = logits - total
    wanted = logits.gather(1, target.unsqueeze(1))
    entropy = torch.special.entr(logp.exp()).sum(-1)
    largest = logits.max(-1, keepdim=True).values
    rank = (logits > wanted).sum(-1)
    return (wanted - total).squeeze(1), entropy, (largest - total).squeeze(1), rank


def _batches(sequences: Sequence[_Sequence], batch_size: int) -> list[list[int]]:
    """Indices by length, longest first, so that padding is little and memory runs out at once or not at all."""
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Row],
    *,
    step: int,
    split: str = EVAL_SPLIT,
    role: str = "policy",
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    batch_size: int = 16,
    tokens: bool = True,
    no_prompt: bool = False,
    hidden: bool = False,
    progress: bool = True,
) -> Scores:
    """Rows of pairs/ and tokens/ for one model on fixed pairs; modes, random state and configs are left as they were.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped, on its device.
        tokenizer: its tokenizer.
        pairs: dicts of prompt, chosen, rejected and, if known, pair_id (`modeling.pairs.PairSet.rows`).
        step, split, role: written into the rows.
        max_length, truncation_mode: as in training, or the numbers are another question's.
        batch_size: responses in one forward.
        tokens: also give a row per response token.
        no_prompt: also score each response without its prompt (tokens' `logp_no_prompt`): a second, shorter forward.
            The first token is null unless the tokenizer has a begin token to predict it from.
        hidden: also give CHES of each pair (Razin et al. 2024, arXiv 2410.08847): meant for the reference model.
        progress: show a bar.

    Raises:
        DiagError: see `encode_pairs`; no pair left.
    """
    from tqdm.auto import tqdm

    encoded = encode_pairs(pairs, tokenizer, max_length, truncation_mode)
    if not encoded.pairs:
        reason = encoded.dropped[0][1] if encoded.dropped else "there are none"
        raise DiagError("no pair to score", got=reason, hint="check the pairs and max_length")
    sequences = [_Sequence(i, s, p.prompt[s], p.response[s]) for i, p in enumerate(encoded.pairs) for s in SIDES]
    bare: list[_Sequence] = []
    if no_prompt and tokens:
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        bare = [_Sequence(s.pair, s.side, begin, s.response) for s in sequences]
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    scorer = _Scorer(model, pad, hidden)
    measured: dict[int, _Measured] = {}
    alone: dict[int, npt.NDArray[np.float64]] = {}
    title = f"scoring, step {step}, {role}"
    with borrowed(model), tqdm(
        total=len(sequences) + len(bare), desc=title, unit="response", disable=not progress
    ) as bar:  # fmt: skip
        for chunk in _batches(sequences, batch_size):
            for i, m in zip(chunk, scorer.measure([sequences[i] for i in chunk]), strict=True):
                measured[i] = m
            bar.update(len(chunk))
        scorer.hidden = False
        for chunk in _batches(bare, batch_size):
            for i, m in zip(chunk, scorer.measure([bare[i] for i in chunk]), strict=True):
                missing = len(bare[i].response) - len(m.logp)
                alone[i] = np.concatenate([np.full(missing, np.nan), m.logp])
            bar.update(len(chunk))
    sizes = token_bytes(tokenizer, scorer.vocabulary)
    head = {"step": step, "split": split, "role": role}
    pair_rows = [head | _pair_row(encoded.pairs[s.pair], s, measured[i], sizes) for i, s in enumerate(sequences)]
    token_frame = pd.DataFrame(columns=TABLES["tokens"].names)
    if tokens:
        token_frame = pd.concat(
            [_token_rows(encoded.pairs[s.pair].pair_id, s, measured[i], alone.get(i)) for i, s in enumerate(sequences)],
            ignore_index=True,
        ).assign(**head)
    ches = _ches(encoded.pairs, [measured[i] for i in range(len(sequences))]) if hidden else None
    return Scores(pd.DataFrame(pair_rows), token_frame, encoded.dropped, ches)


def _pair_row(pair: EncodedPair, s: _Sequence, m: _Measured, sizes: npt.NDArray[np.int32]) -> dict[str, Any]:
    n = len(s.response)
    # A response without any prompt before it (keep_end can cut it all) has a first token that nothing predicts.
    scored = len(m.logp)
    return {
        "pair_id": pair.pair_id,
        "side": s.side,
        "sum_logp": float(m.logp.sum()),
        "n_tokens": scored,
        "n_bytes": int(sizes[s.response[n - scored :]].sum()),
        "n_truncated": pair.n_truncated[s.side],
        "top1": float((m.rank < 1).mean()) if scored else math.nan,
        "top5": float((m.rank < 5).mean()) if scored else math.nan,
        "entropy_sum": float(m.entropy.sum()),
        "greedy_logp_sum": float(m.greedy.sum()),
    }


def _token_rows(pair_id: str, s: _Sequence, m: _Measured, alone: npt.NDArray[np.float64] | None) -> pd.DataFrame:
    skipped = len(s.response) - len(m.logp)
    rows = {
        "pair_id": pair_id,
        "side": s.side,
        "position": np.arange(len(m.logp), dtype=np.int32),
        "token_id": np.array(s.response[skipped:], dtype=np.int32),
        "logp": m.logp.astype(np.float32),
        "entropy": m.entropy.astype(np.float32),
        "is_top1": m.rank < 1,
    }
    if alone is not None:
        # An object column: NaN stands for "cannot be told" here, which a float column would keep as a value.
        kept = alone[skipped:]
        rows["logp_no_prompt"] = pd.array([None if np.isnan(v) else float(v) for v in kept], dtype=object)
    return pd.DataFrame(rows)


def _ches(pairs: Sequence[EncodedPair], measured: Sequence[_Measured]) -> pd.DataFrame:
    """CHES = <S+, S-> - |S+|^2 and its length-normalised form <S+, S->/(n+ n-) - |S+|^2/n+^2, S = sum of hidden states
    that predict the response's tokens (from the last prompt token to the last but one of the response)."""
    rows = []
    for i, pair in enumerate(pairs):
        chosen, rejected = measured[2 * i], measured[2 * i + 1]
        assert chosen.hidden is not None and rejected.hidden is not None
        n, m = max(1, len(chosen.logp)), max(1, len(rejected.logp))
        inner, norm = float(chosen.hidden @ rejected.hidden), float(chosen.hidden @ chosen.hidden)
        rows.append(
            {"pair_id": pair.pair_id, "ches": inner - norm, "ln_ches": inner / (n * m) - norm / n**2,
             "n_chosen": n, "n_rejected": m}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=["pair_id", "ches", "ln_ches", "n_chosen", "n_rejected"])


def answer_logp(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    outputs: pd.DataFrame,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> pd.Series:
    """Log-prob (nats) of answers that another model or step wrote, under this model: on the index of `outputs`.

    Old answer under the new model, and the reverse: whether what the model used to say became unlikely, or only
    second best. Needs `prompt` (text as the model saw it) and `token_ids`; the tokenizer must be the same.
    """
    from tqdm.auto import tqdm

    # The prompt column is rendered text, so special tokens that a chat template wrote stand in it as text.
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    sequences = []
    for i, (prompt, ids) in enumerate(zip(outputs["prompt"], outputs["token_ids"], strict=True)):
        encoded = list(tokenizer(str(prompt), add_special_tokens=False)["input_ids"])
        with_special = list(tokenizer(str(prompt))["input_ids"])
        # A plain prompt was tokenised with special tokens, a rendered chat already holds its begin token.
        use = encoded if begin and encoded[:1] == begin else with_special
        sequences.append(_Sequence(i, "", use, [int(t) for t in ids]))
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    scorer = _Scorer(model, pad, False)
    found = np.full(len(sequences), np.nan)
    with borrowed(model), tqdm(total=len(sequences), unit="answer", disable=not progress) as bar:
        for chunk in _batches(sequences, batch_size):
            for i, m in zip(chunk, scorer.measure([sequences[i] for i in chunk]), strict=True):
                found[i] = m.logp.sum()
            bar.update(len(chunk))
    return pd.Series(found, index=outputs.index)
