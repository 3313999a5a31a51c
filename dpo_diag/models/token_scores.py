"""What the distributions at some positions say of the tokens that stand there: one pass over the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.models.head import Head, Seen
from dpo_diag.models.head_tiles import Sums

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
        kl: (KL(policy || reference), KL(reference || policy)) of the distributions, nats; None if not asked for.
    """

    logp: FloatArray
    entropy: FloatArray
    greedy: FloatArray
    rank: npt.NDArray[np.int64]
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    hidden: FloatArray | None = None
    kl: tuple[FloatArray, FloatArray] | None = None

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
    numbers = _numbers(head, seen, targets, n_likeliest)
    logp, entropy, greedy, rank = (values.cpu().numpy() for values in numbers[:4])
    ids, logps = numbers.likeliest.tolist(), numbers.likeliest_logp.tolist()
    scores, at = [], 0
    for n in lengths.tolist():
        own = slice(at, at + n)
        at = own.stop
        best = [list(zip(*both, strict=True)) for both in zip(ids[own], logps[own], strict=True)] if n_likeliest else []
        total = seen.hidden[own].float().sum(0).double().cpu().numpy() if hidden else None
        scores.append(TokenScores(logp[own], entropy[own], greedy[own], rank[own], best, total))
    return scores


def _numbers(head: Head, seen: Seen, targets: torch.Tensor, n_likeliest: int) -> _Numbers:
    """The numbers of all positions, from the tiles of their logits.

    A rank counts logits above the target's, which only its own tile holds. It is made once more beforehand; where the
    two are not equal to the last bit, the position is counted again from its whole row.
    """
    n, new = len(targets), seen.hidden.new_zeros
    guess = head.of_tokens(seen.hidden, targets) if seen.logits is None and head.is_tiled else None
    sums, own = Sums(n, seen.hidden.device), new(n, dtype=torch.float32)
    rank = new(n, dtype=torch.int64)
    best = new((n, min(n_likeliest, head.vocabulary)), dtype=torch.float32).fill_(-torch.inf)
    best_ids = new(best.shape, dtype=torch.int64)
    for tile in head.tiles(seen):
        rows, z = tile.rows, tile.logits
        inside, at = tile.of(targets)
        own[rows].index_copy_(0, inside, z[inside, at])
        # Written as floats, a comparison and its sum take a third of the time that bools do.
        above = torch.gt(z, (own if guess is None else guess)[rows, None], out=tile.spare)
        rank[rows] += above.sum(1).long()
        if n_likeliest:
            top = torch.cat([best[rows], z], dim=1).topk(best.shape[1], dim=1)
            ids = torch.arange(tile.columns.start, tile.columns.stop, device=z.device).expand(len(z), -1)
            best_ids[rows] = torch.cat([best_ids[rows], ids], dim=1).gather(1, top.indices)
            best[rows] = top.values
        sums.add(tile)
    if guess is not None and (again := own != guess).any():
        whole = head.logits(Seen(seen.hidden[again], None))
        rank[again] = (whole > whole.gather(1, targets[again, None])).sum(1)
    log_z = sums.log_z
    return _Numbers(own - log_z, sums.entropy, -sums.log_total, rank, best_ids, best - log_z[:, None])
