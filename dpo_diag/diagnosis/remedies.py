"""What to change, with coefficients translated between trainers from this run's own lengths.

An SFT (NLL) term has three normalisations in public code, and a weight means another thing in each:

    TRL `loss_weights` of "sft" (and rpo_alpha before)   w * sum_i(-s_i) / sum_i(n_i)      batch-token mean
    LLaMA-Factory `pref_ftx`, OpenRLHF `nll_loss_coef`   v * mean_i(-s_i / n_i)            mean per sequence
    summed log-probs (Razin et al., own code)            u * mean_i(-s_i)                  sum per sequence

Two weights are equivalent when the terms have the same value. By lengths alone (every token equally hard): v = w and
u = w / mean(n). With this run's cross-entropies, v = w * log ppl_token / mean(ce); u does not change, because the sum
and the batch-token mean differ by the constant mean(n) only. What no factor changes: inside one batch a mean per
sequence gives a token of a short answer n_mean / n_i times the weight that the batch-token mean gives it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dpo_diag.diagnosis.aligned import Aligned, SideArrays
from dpo_diag.diagnosis.decompose.perplexity import Concentration
from dpo_diag.diagnosis.decompose.trajectory import TurningPoint
from dpo_diag.diagnosis.verdict import Verdict
from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics
from dpo_diag.text import number, percent

REMEDIED = ("likelihood_displacement", "sign_depends_on_aggregator", "late_divergence", "loss_unknown")
"""Verdict labels that these remedies answer; others only where something measured got worse."""
FEW_PAIRS = 0.1
"""Share of the pairs up to which reading them is a remedy."""
DPOP_LAMBDA = 50.0
"""The paper's code (Pal et al. 2024, arXiv 2402.13228) multiplies the penalty by 50, inside beta."""


def nll_weights(
    w_batch_token_mean: float, n_tokens: npt.ArrayLike, sum_logp: npt.ArrayLike | None = None
) -> dict[str, float]:
    """The same SFT term in each trainer's normalisation.

    Args:
        w_batch_token_mean: TRL's weight.
        n_tokens: response tokens of the chosen answers, shape (pairs,), all > 0.
        sum_logp: their log-prob sums (nats); None translates by lengths alone.

    Returns: {"trl_sft_weight", "llamafactory_pref_ftx", "openrlhf_nll_loss_coef", "summed_logps",
        "shortest_answer_token_factor"}. Hand case: w 1, lengths 10 and 30, sums -10 and -60: batch-token mean
        70/40 = 1.75, per sequence (1 + 2)/2 = 1.5, summed 35; so 1.1667 and 0.05; the factor is 20/10 = 2.

    Raises: ValueError for an empty set or a count below 1.
    """
    n = np.asarray(n_tokens, dtype=np.float64)
    if n.size == 0 or not (n > 0).all():
        raise ValueError("token counts must be positive and there must be some")
    per_sequence = w_batch_token_mean
    if sum_logp is not None:
        mean_ce = metrics.mean_ce(sum_logp, n)
        if mean_ce > 0:
            per_sequence = w_batch_token_mean * metrics.log_ppl_token(sum_logp, n) / mean_ce
    return {
        "trl_sft_weight": w_batch_token_mean,
        "llamafactory_pref_ftx": per_sequence,
        "openrlhf_nll_loss_coef": per_sequence,
        "summed_logps": w_batch_token_mean / float(n.mean()),
        "shortest_answer_token_factor": float(n.mean() / n.min()),
    }


def dpop_lambda(beta: float, inside: float = DPOP_LAMBDA) -> dict[str, float]:
    """DPOP's lambda inside beta, beta[a - b - lambda max(0, -a)], and outside, beta[a - b] - lambda' max(0, -a):
    lambda' = beta * lambda."""
    return {"inside_beta": inside, "outside_beta": beta * inside}


@dataclass(frozen=True)
class Remedy:
    """Something to change: why, what to do, the settings of each trainer, where it comes from.

    `weights`: of an SFT term, the same one in every normalisation (see `nll_weights`).
    """

    name: str
    why: str
    do: str
    source: str
    settings: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] | None = None


def suggest(
    aligned: Aligned,
    spec: LossSpec | None,
    decision: Verdict,
    turns: Sequence[TurningPoint],
    few: Concentration | None,
) -> list[Remedy]:
    """Remedies for chosen likelihood that fell while the loss fell, most direct first; [] for other verdicts.

    Args:
        spec: the run's loss, None if unknown.
        few: how few pairs carry the change, None where nothing counts lengths.
    """
    if decision.label not in REMEDIED and decision.harm != "harmful":
        return []
    a, b = (aligned.pairs[c].to_numpy(dtype=np.float64) for c in ("a1", "b1"))
    known = np.isfinite(a) & np.isfinite(b)
    suggested = []
    turn = max(turns, key=lambda t: t.worse_by.value, default=None)
    if turn is not None:
        suggested.append(_stop_earlier(turn))
    if spec is None or "sft" not in spec.types:
        suggested.append(_sft_term(spec, aligned.responses.get("chosen")))
    if spec is not None:
        suggested.append(_higher_beta(spec, float(spec.beta * (a - b)[known].mean()) if known.any() else None))
        if (a[known] < 0).any():
            suggested.append(_dpop(spec, float((a[known] < 0).mean())))
    if few is not None and few.pairs and few.share and few.pairs <= max(3, FEW_PAIRS * few.of):
        suggested.append(_read_the_pairs(few.pairs, few.of, few.share))
    return suggested


def _stop_earlier(turn: TurningPoint) -> Remedy:
    return Remedy(
        "stop earlier",
        f"chosen {turn.quantity} was best at step {turn.step} ({number(turn.start)}) and {number(turn.end)} at step "
        f"{turn.to_step}",
        f"compare the checkpoint of step {turn.step} with the last one on outputs or a task score",
        "this run",
    )


def _read_the_pairs(pairs: int, of: int, share: float) -> Remedy:
    return Remedy(
        "look at the pairs that carry it",
        f"{pairs} of {of} pairs carry {percent(share)} of the change",
        "read them; drop or rewrite those whose chosen and rejected answers hardly differ",
        "Razin et al. 2024, arXiv 2410.08847 (filtering by similarity restored behaviour)",
    )


def _sft_term(spec: LossSpec | None, chosen: SideArrays | None) -> Remedy:
    types = [*(spec.types if spec is not None else ("sigmoid",)), "sft"]
    factors = [*(spec.term_weights if spec is not None else (1.0,)), 1.0]
    settings = {"TRL": f"loss_type={json.dumps(types)}, loss_weights={json.dumps(factors)} (batch-token mean)"}
    weights = None
    # A weight is about tokens: bytes that stand in for them would translate to another one.
    if chosen is not None and chosen.unit == "token":
        weights = nll_weights(1.0, chosen.n_from, chosen.sum_from)
        settings |= {
            "LLaMA-Factory": f"pref_ftx: {weights['llamafactory_pref_ftx']:.3g} (mean per sequence)",
            "OpenRLHF": f"nll_loss_coef {weights['openrlhf_nll_loss_coef']:.3g} (mean per sequence)",
            "summed log-probs": f"weight {weights['summed_logps']:.3g} (sum per sequence)",
        }
    return Remedy(
        "add an SFT (NLL) term on the chosen answers",
        "it pushes the chosen log-prob up directly; the preference loss sees only the difference to rejected",
        "start at weight 1 in TRL's normalisation; the same term elsewhere needs the weight shown beside it",
        "Pang et al. 2024, arXiv 2404.19733; lengths and cross-entropies of this run",
        settings,
        weights,
    )


def _higher_beta(spec: LossSpec, margin: float | None) -> Remedy:
    why = "a higher beta reaches the same margin with a smaller move away from the reference"
    if margin is not None and "sigmoid" in spec.types:
        why += (
            f"; the mean margin is {margin:.3g} at beta {spec.beta:g}, i.e. {margin / spec.beta:.3g} nats between "
            f"the log-ratios: at beta {10 * spec.beta:g} the same margin needs {margin / (10 * spec.beta):.3g}"
        )
    return Remedy(
        "raise beta or lower the learning rate",
        why,
        f"try beta {5 * spec.beta:g} and {20 * spec.beta:g}, and a third of the learning rate",
        "princeton-nlp/SimPO issue 42",
        {"TRL": f"beta={5 * spec.beta:g}", "LLaMA-Factory": f"pref_beta: {5 * spec.beta:g}"},
    )


def _dpop(spec: LossSpec, below: float) -> Remedy:
    lambdas = dpop_lambda(spec.beta)
    return Remedy(
        "penalise chosen answers below the reference (DPOP)",
        f"{percent(below)} of the pairs have a chosen answer less likely than under the reference",
        f"lambda {lambdas['inside_beta']:g} inside beta (the paper's code) is {lambdas['outside_beta']:.3g} "
        f"where the trainer puts it outside beta {spec.beta:g}; TRL has none",
        "Pal et al. 2024, arXiv 2402.13228",
    )
