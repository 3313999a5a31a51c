"""What the distributions at some positions say of the tokens that stand there: one pass over the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.models.head import Head, Seen

FloatArray = npt.NDArray[np.float64]


@dataclass
class TokenScores:
    """Per scored token: (tokens,) arrays; one shorter than the response where it has no prompt.

    Attributes:
        logp: of the token, nats.
        entropy: of the distribution that it comes from, nats.
        greedy: log-prob of the likeliest token there.
        rank: tokens with a larger logit; 0 for the first choice.
        likeliest: per token the (token id, log-prob) of the likeliest choices, largest first; [] if not asked for.
        hidden: sum over the positions of the hidden states that the head sees, (width,); None if not asked for.
    """

    logp: FloatArray
    entropy: FloatArray
    greedy: FloatArray
    rank: npt.NDArray[np.int64]
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    hidden: FloatArray | None = None

    @classmethod
    def empty(cls) -> TokenScores:
        """Of a response of which nothing is predicted."""
        nothing = np.empty(0)
        return cls(nothing, nothing, nothing, nothing.astype(np.int64))


class _Numbers(NamedTuple):
    """Of some positions: (positions,) each, float64 and int64; the likeliest (positions, choices)."""

    logp: torch.Tensor
    entropy: torch.Tensor
    greedy: torch.Tensor
    rank: torch.Tensor
    likeliest: torch.Tensor
    likeliest_logp: torch.Tensor


def token_scores(
    head: Head,
    seen: Seen,
    targets: torch.Tensor,
    lengths: npt.NDArray[np.int64],
    *,
    n_likeliest: int = 0,
    hidden: bool = False,
) -> list[TokenScores]:
    """Scores of responses that stand one after the other.

    Args:
        seen: what `head.see` gave at the positions that predict their tokens.
        targets: the tokens, int64 (positions,).
        lengths: positions of each response; at least one in all.
        n_likeliest: also give so many likeliest choices at each position.
        hidden: also give the sums of the hidden states.
    """
    blocks = []
    for at in range(0, len(targets), head.positions):
        own = slice(at, at + head.positions)
        logits = None if seen.logits is None else seen.logits[own]
        blocks.append(_block(head, seen.hidden[own], logits, targets[own], n_likeliest))
    numbers = _Numbers(*(torch.cat(parts).cpu() for parts in zip(*blocks, strict=True)))
    logp, entropy, greedy, rank = (values.numpy() for values in numbers[:4])
    ids, logps = numbers.likeliest.tolist(), numbers.likeliest_logp.tolist()
    scores, at = [], 0
    for n in lengths.tolist():
        own = slice(at, at + n)
        at = own.stop
        best = [list(zip(*both, strict=True)) for both in zip(ids[own], logps[own], strict=True)] if n_likeliest else []
        total = seen.hidden[own].float().sum(0).double().cpu().numpy() if hidden else None
        scores.append(TokenScores(logp[own], entropy[own], greedy[own], rank[own], best, total))
    return scores


def _block(
    head: Head, hidden: torch.Tensor, logits: torch.Tensor | None, target: torch.Tensor, n_likeliest: int
) -> _Numbers:
    """The numbers of a few positions, from the tiles of their logits.

    Sums are taken relative to the largest logit so far, within a tile in float32 and over tiles in float64:
    log Σ exp z = m + log s and H = log s - x / s, with m = max z, s = Σ exp(z - m), x = Σ (z - m) exp(z - m).
    A rank counts logits above the target's, which only its own tile holds. It is made once more beforehand; where the
    two are not equal to the last bit, the position is counted again from its whole row.
    """
    n = len(hidden)
    whole = logits is not None or not head.is_tiled
    guess = None if whole else head.columns(hidden, target).diagonal()[:, None].contiguous()
    new = hidden.new_zeros
    own, largest = new((n, 1), dtype=torch.float32), new((n, 1), dtype=torch.float32).fill_(-torch.inf)
    s, x = new((n, 1), dtype=torch.float64), new((n, 1), dtype=torch.float64)
    rank = new((n, 1), dtype=torch.int64)
    best, best_ids = new((n, 0), dtype=torch.float32), new((n, 0), dtype=torch.int64)
    for first, z in head.tiles(hidden) if logits is None else [(0, logits.float())]:
        here = ((target >= first) & (target < first + z.shape[1])).nonzero().squeeze(1)
        own[here, 0] = z[here, target[here] - first]
        # Written as floats, a comparison and its sum take a third of the time that bools do.
        above = torch.gt(z, own if guess is None else guess, out=torch.empty_like(z))
        rank += above.sum(1, keepdim=True).long()
        if n_likeliest:
            top = torch.cat([best, z], dim=1).topk(min(n_likeliest, best.shape[1] + z.shape[1]), dim=1)
            ids = torch.arange(first, first + z.shape[1], device=z.device).expand(n, -1)
            best, best_ids = top.values, torch.cat([best_ids, ids], dim=1).gather(1, top.indices)
        before, largest = largest, torch.maximum(largest, z.amax(1, keepdim=True))
        shift = (before - largest).double()
        d = torch.sub(z, largest, out=above)
        e = torch.exp(d, out=z) if logits is None else torch.exp(d)
        kept = shift.exp()
        if first:
            x = (x + shift * s) * kept
            s = s * kept
        s = s + e.sum(1, keepdim=True)
        terms = torch.mul(e, d, out=d)
        added = terms.sum(1, keepdim=True)
        if added.isnan().any():  # a logit of -inf: exp(-inf) * -inf is no number, and such a token adds nothing
            added = terms.nan_to_num_(nan=0.0).sum(1, keepdim=True)
        x = x + added
    if guess is not None and (again := (own != guess).squeeze(1)).any():
        rows = head.logits(Seen(hidden[again], None))
        rank[again] = (rows > rows.gather(1, target[again, None])).sum(1, keepdim=True)
    log_s = s.log()
    total = largest.double() + log_s
    logp, entropy, greedy = (values.squeeze(1) for values in (own - total, log_s - x / s, -log_s))
    return _Numbers(logp, entropy, greedy, rank.squeeze(1), best_ids, best - total)
