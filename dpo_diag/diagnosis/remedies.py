"""What to change, with coefficients translated between trainers from this run's own lengths.

An SFT (NLL) term has three normalisations in public code, and a weight means another thing in each:

    TRL `loss_weights` of "sft" (and rpo_alpha before)   w * sum_i(-s_i) / sum_i(n_i)      batch-token mean
    LLaMA-Factory `pref_ftx`, OpenRLHF `nll_loss_coef`   v * mean_i(-s_i / n_i)            mean per sequence
    summed log-probs (Razin et al., own code)            u * mean_i(-s_i)                  sum per sequence

Two weights are equivalent when the terms have the same value. By lengths alone (every token equally hard): v = w and
u = w / mean(n). With this run's cross-entropies, v = w * log ppl_token / mean(ce); u does not change, because the sum
and the batch-token mean differ by the constant mean(n) only. What no factor mends: inside one batch a mean per sequence
gives a token of a short answer n_mean / n_i times the weight that the batch-token mean gives it.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics

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


def suggest(
    spec: LossSpec | None,
    n_tokens: npt.ArrayLike,
    sum_logp: npt.ArrayLike,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Remedies for chosen likelihood that fell while the loss fell, most direct first.

    Args:
        spec: the run's loss, None if unknown.
        n_tokens, sum_logp: of the chosen answers at the first step; empty arrays where token counts are unknown.
        facts: numbers that the sentences use: "turning_point" (of `trajectory.turning_points`, or None),
            "a_below_reference" (share of pairs whose chosen answer is below the reference, or None), "margin" (mean
            beta (a - b), or None), "concentration" (of `perplexity_split.concentration`, or None).

    Returns: [{"name", "why", "do", "settings": {trainer: text}, "source"}].
    """
    n, s = np.asarray(n_tokens, dtype=np.float64), np.asarray(sum_logp, dtype=np.float64)
    found = []
    turn = facts.get("turning_point")
    if turn:
        found.append(
            {
                "name": "stop earlier",
                "why": f"chosen {turn['quantity']} was best at step {turn['step']} ({turn['from']:.4g}) and stood at "
                f"{turn['to']:.4g} at step {turn['to_step']}",
                "do": f"compare the checkpoint of step {turn['step']} with the last one on outputs or a task score",
                "settings": {},
                "source": "this run",
            }
        )
    if spec is None or "sft" not in spec.types:
        found.append(_sft_term(spec, n, s))
    if spec is not None:
        found.append(_higher_beta(spec, facts.get("margin")))
        below = facts.get("a_below_reference")
        if below:
            found.append(_dpop(spec, below))
    few = facts.get("concentration")
    if few and few["pairs"] and few["pairs"] <= max(3, 0.1 * few["of"]):
        found.append(
            {
                "name": "look at the pairs that carry it",
                "why": f"{few['pairs']} of {few['of']} pairs carry {100 * few['share']:.0f} % of the change",
                "do": "read them; drop or rewrite those whose chosen and rejected answers hardly differ",
                "settings": {},
                "source": "Razin et al. 2024, arXiv 2410.08847 (filtering by similarity restored behaviour)",
            }
        )
    return found


def _sft_term(spec: LossSpec | None, n: npt.NDArray[np.float64], s: npt.NDArray[np.float64]) -> dict[str, Any]:
    known = np.isfinite(n) & np.isfinite(s) & (n > 0)
    types = [*(spec.types if spec is not None else ("sigmoid",)), "sft"]
    factors = [*(spec.term_weights if spec is not None else (1.0,)), 1.0]
    settings = {"TRL": f"loss_type={json.dumps(types)}, loss_weights={json.dumps(factors)} (batch-token mean)"}
    weights = None
    if known.any():
        weights = nll_weights(1.0, n[known], s[known])
        settings |= {
            "LLaMA-Factory": f"pref_ftx: {weights['llamafactory_pref_ftx']:.3g} (mean per sequence)",
            "OpenRLHF": f"nll_loss_coef {weights['openrlhf_nll_loss_coef']:.3g} (mean per sequence)",
            "summed log-probs": f"weight {weights['summed_logps']:.3g} (sum per sequence)",
        }
    return {
        "name": "add an SFT (NLL) term on the chosen answers",
        "why": "it pushes the chosen log-prob up directly; the preference loss sees only the difference to rejected",
        "do": "start at weight 1 in TRL's normalisation; the same term elsewhere needs the weight shown beside it",
        "settings": settings,
        "weights": weights,
        "source": "Pang et al. 2024, arXiv 2404.19733; lengths and cross-entropies of this run",
    }


def _higher_beta(spec: LossSpec, margin: float | None) -> dict[str, Any]:
    why = "a higher beta reaches the same margin with a smaller move away from the reference"
    if margin is not None and math.isfinite(margin) and "sigmoid" in spec.types:
        why += (
            f"; the mean margin is {margin:.3g} at beta {spec.beta:g}, i.e. {margin / spec.beta:.3g} nats between "
            f"the log-ratios: at beta {10 * spec.beta:g} the same margin needs {margin / (10 * spec.beta):.3g}"
        )
    return {
        "name": "raise beta or lower the learning rate",
        "why": why,
        "do": f"try beta {5 * spec.beta:g} and {20 * spec.beta:g}, and a third of the learning rate",
        "settings": {"TRL": f"beta={5 * spec.beta:g}", "LLaMA-Factory": f"pref_beta: {5 * spec.beta:g}"},
        "source": "princeton-nlp/SimPO issue 42",
    }


def _dpop(spec: LossSpec, below: float) -> dict[str, Any]:
    lambdas = dpop_lambda(spec.beta)
    return {
        "name": "penalise chosen answers below the reference (DPOP)",
        "why": f"{100 * below:.0f} % of the pairs have a chosen answer less likely than under the reference",
        "do": f"lambda {lambdas['inside_beta']:g} inside beta (the paper's code) is {lambdas['outside_beta']:.3g} "
        f"where the trainer puts it outside beta {spec.beta:g}; TRL has none",
        "settings": {},
        "source": "Pal et al. 2024, arXiv 2402.13228",
    }
