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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.checks.shared.advice import (
    BETA_LARGE,
    LOSS_TAUGHT,
    LOWER_RATE,
    RAISE_BETA,
    REFERENCE_RIGHT,
    ROSE,
    SFT_TERM,
    SOUND,
    SUMS,
    TRAINED,
    WENT_WRONG,
    WITH_REFERENCE,
    Condition,
    Situation,
)
from dpo_diag.diagnosis.decompose.perplexity import Concentration
from dpo_diag.diagnosis.decompose.trajectory import TurningPoint
from dpo_diag.diagnosis.verdict import Verdict
from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics
from dpo_diag.text import number, percent
from dpo_diag.thresholds import Thresholds

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


@dataclass(frozen=True)
class Material:
    """What remedies are made from; `a`, `b` (nats) are the log-ratios of the pairs where both are finite."""

    aligned: Aligned
    spec: LossSpec | None
    turns: Sequence[TurningPoint]
    few: Concentration | None
    situation: Situation
    thresholds: Thresholds

    @property
    def log_ratios(self) -> npt.NDArray[np.float64]:
        """a and b, shape (pairs, 2)."""
        both: npt.NDArray[np.float64] = self.aligned.pairs[["a1", "b1"]].to_numpy(dtype=np.float64)
        return both[np.isfinite(both).all(axis=1), :]


def suggest(material: Material, decision: Verdict) -> list[Remedy]:
    """Remedies for a chosen likelihood or a loss that went wrong, most direct first; [] where neither did.

    Each of `REMEDIES` is given only where all of its conditions hold.
    """
    if decision.harm != "harmful" and not WENT_WRONG.holds(material.situation, material.thresholds):
        return []
    rules = (
        make(material)
        for conditions, make in REMEDIES
        if all(condition.holds(material.situation, material.thresholds) for condition in conditions)
    )
    return [remedy for remedy in rules if remedy is not None]


def _stop_earlier(material: Material) -> Remedy | None:
    turn = max(material.turns, key=lambda t: t.worse_by.value, default=None)
    if turn is None:
        return None
    return Remedy(
        "stop earlier",
        f"chosen {turn.quantity} was best at step {turn.step} ({number(turn.start)}) and {number(turn.end)} at step "
        f"{turn.to_step}",
        f"compare the checkpoint of step {turn.step} with the last one on outputs or a task score",
        "this run",
    )


def _read_the_pairs(material: Material) -> Remedy | None:
    few, share = material.few, material.thresholds["remedies.few_pairs"]
    if few is None or not few.pairs or not few.share or few.pairs > min(max(3, share * few.of), few.of / 4):
        return None
    return Remedy(
        "look at the pairs that carry it",
        f"{few.pairs} of {few.of} pairs carry {percent(few.share)} of the change",
        "read them; drop or rewrite those whose chosen and rejected answers hardly differ",
        "Razin et al. 2024, arXiv 2410.08847 (filtering by similarity restored behaviour)",
    )


def _sft_term(material: Material) -> Remedy:
    spec, chosen = material.spec, material.aligned.responses.get("chosen")
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


def _higher_beta(material: Material) -> Remedy:
    beta, most = float(material.situation.beta or 0.0), material.thresholds["remedies.beta_small"]
    tried = sorted({min(2 * beta, most), min(5 * beta, most)})
    why = "a higher beta reaches the same loss with a smaller move away from the reference"
    apart = float(np.diff(material.log_ratios[:, ::-1]).mean()) if len(material.log_ratios) else 0.0
    if apart > 0 and "sigmoid" in material.situation.types:
        why += (
            f"; the mean margin is {number(beta * apart, 3)} at beta {beta:g}, i.e. {number(apart, 3)} nats between "
            f"the log-ratios: at beta {tried[-1]:g} the same margin needs {number(beta * apart / tried[-1], 3)}"
        )
    return Remedy(
        "raise beta",
        why,
        f"try beta {' and '.join(f'{b:g}' for b in tried)}",
        "princeton-nlp/SimPO issue 42",
        {"TRL": f"beta={tried[0]:g}", "LLaMA-Factory": f"pref_beta: {tried[0]:g}"},
    )


def _lower_beta(material: Material) -> Remedy:
    beta = float(material.situation.beta or 0.0)
    return Remedy(
        "lower beta",
        f"the loss rose at beta {beta:g}, where every nat between the log-ratios counts {beta:g}: published runs with "
        f"summed log-probs use 0.01 to {material.thresholds['remedies.beta_small']:g}",
        "try beta 0.1",
        "TRL's default",
        {"TRL": "beta=0.1", "LLaMA-Factory": "pref_beta: 0.1"},
    )


def _lower_rate(material: Material) -> Remedy:
    rate, t = material.situation.learning_rate, material.thresholds
    rose = "the loss rose" if ROSE.holds(material.situation, t) else "smaller steps move less of what no pair asks for"
    if rate is None:
        return Remedy("lower the learning rate", f"{rose}; the rate is not recorded", "try a third of it", "this run")
    high = rate >= t["remedies.rate_high"]
    usual = "; full fine-tuning takes 5e-7 to 5e-6, adapters up to about 1e-4" if high else ""
    return Remedy(
        "lower the learning rate",
        f"{rose}; the peak learning rate was {rate:g}{usual}",
        f"try {rate / (10 if high else 3):.1g}",
        "this run",
        {"TRL": f"learning_rate={rate / (10 if high else 3):.1g}"},
    )


def _dpop(material: Material) -> Remedy | None:
    a, beta = material.log_ratios[:, 0], float(material.situation.beta or 0.0)
    if not beta or not (a < 0).any():
        return None
    lambdas = dpop_lambda(beta)
    return Remedy(
        "penalise chosen answers below the reference (DPOP)",
        f"{percent(float((a < 0).mean()))} of the pairs have a chosen answer less likely than under the reference",
        f"lambda {lambdas['inside_beta']:g} inside beta (the paper's code) is {lambdas['outside_beta']:.3g} "
        f"where the trainer puts it outside beta {beta:g}; TRL has none",
        "Pal et al. 2024, arXiv 2402.13228",
    )


REMEDIES: tuple[tuple[tuple[Condition, ...], Callable[[Material], Remedy | None]], ...] = (
    ((SOUND, TRAINED), _stop_earlier),
    ((SOUND, TRAINED, REFERENCE_RIGHT, ROSE, BETA_LARGE), _lower_beta),
    (SFT_TERM.when, _sft_term),
    (RAISE_BETA.when, _higher_beta),
    (LOWER_RATE.when, _lower_rate),
    ((*LOSS_TAUGHT, SUMS, WITH_REFERENCE), _dpop),
    ((SOUND, TRAINED), _read_the_pairs),
)
"""Conditions and the remedy, in the order in which they are shown."""
