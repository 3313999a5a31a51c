"""Per-pair preference losses as TRL 1.16 computes them, in float64 numpy: the one definition that training
(to check TRL's own number) and analysis (to split a change exactly) share. No torch: nothing here is differentiated.

A pair enters through its log-ratios to the reference, a = logp(chosen) - ref and b = logp(rejected) - ref (nats).
Losses that couple the pairs of a batch (sorting, running means) have no per-pair value and are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_diag.errors import DiagError

FloatArray = npt.NDArray[np.float64]

ADDITIVE = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "sppo_hard", "apo_zero", "apo_down", "discopop",
    "sigmoid_norm", "sft", "cdpo",
)  # fmt: skip
"""Loss types with a per-pair value. `cdpo` is not a TRL 1.16 name: it is what older TRL and other trainers call
sigmoid with label smoothing, (1 - eps) L + eps L_flipped; TRL 1.16's `sigmoid` ignores label smoothing."""
COUPLED = ("bco_pair", "aot", "aot_unpaired")
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


@dataclass(frozen=True)
class LossSpec:
    """What a preference loss is made of; the names are TRL's DPOConfig's.

    Attributes:
        types: loss types that are added up.
        weights: one factor each; all 1 if empty.
        beta: inverse temperature (ipo: tau).
        ld_alpha: LD-DPO's factor on the tokens beyond the shorter response (arXiv 2409.06411); it changes the
            log-probs that enter a and b (column `loss_logp`), not the loss.
        use_weighting: WPO (arXiv 2406.11827): each pair's loss times its detached weight.
    """

    types: tuple[str, ...] = ("sigmoid",)
    weights: tuple[float, ...] = ()
    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    discopop_tau: float = 0.05
    ld_alpha: float | None = None
    use_weighting: bool = False

    def __post_init__(self) -> None:
        unknown = [t for t in self.types if t not in ADDITIVE + COUPLED]
        if unknown or not self.types:
            raise DiagError("unknown loss type", got=unknown or "none", expected=f"some of {ADDITIVE + COUPLED}")
        if self.weights and len(self.weights) != len(self.types):
            raise DiagError("one weight per loss type", got=self.weights, expected=f"{len(self.types)} weights")
        if self.f_divergence_type not in DIVERGENCES:
            raise DiagError("unknown f-divergence", got=self.f_divergence_type, expected=f"one of {DIVERGENCES}")

    @property
    def term_weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.types)

    @property
    def not_additive(self) -> str | None:
        """Why this loss has no per-pair value, or None if it has one."""
        coupled = [t for t in self.types if t in COUPLED]
        if coupled:
            return f"{', '.join(coupled)} couples the pairs of a batch"
        if self.use_weighting and "sft" in self.types:
            return "sft under use_weighting multiplies a batch mean by pair weights"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As run.json keeps it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LossSpec:
        """From run.json's `loss`; keys that are not the loss's own are ignored."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in known and v is not None
        }
        return cls(**values)


def log_sigmoid(x: FloatArray) -> FloatArray:
    """log(1 / (1 + exp(-x))), without overflow."""
    result: FloatArray = -np.logaddexp(0.0, -x)
    return result


def sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(log_sigmoid(x))


def scores(spec: LossSpec, ratio: FloatArray) -> FloatArray:
    """f'(exp(ratio)) of the f-divergence (arXiv 2309.16240): the log-ratio itself for reverse KL."""
    if spec.f_divergence_type == "forward_kl":
        return 1.0 - np.exp(-ratio)
    if spec.f_divergence_type == "js_divergence":
        return float(np.log(2.0)) + log_sigmoid(ratio)
    if spec.f_divergence_type == "alpha_divergence" and abs(spec.f_alpha_divergence_coef - 1.0) >= 1e-6:
        power = spec.f_alpha_divergence_coef - 1.0
        # 80 is TRL's clamp in float32; without it the same pair would give another loss here than there.
        return np.asarray((np.exp(np.minimum(power * ratio, 80.0)) - 1.0) / power)
    return ratio


def pair_losses(
    spec: LossSpec,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    n_chosen: npt.ArrayLike | None = None,
    n_rejected: npt.ArrayLike | None = None,
    chosen_sum_logp: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
) -> FloatArray:
    """Loss of each pair, shape (pairs,); their mean is the batch's loss as TRL 1.16 reports it.

    Args:
        a, b: log-ratios to the reference of chosen and rejected (nats), shape (pairs,).
        n_chosen, n_rejected: response tokens; needed by ipo, sigmoid_norm (both) and sft (chosen).
        chosen_sum_logp: nats; needed by sft. TRL's SFT term is the mean over the batch's chosen tokens, so a pair's
            share is -sum_logp * pairs / (all chosen tokens): it depends on which pairs are averaged together.
        weight: WPO weight of each pair; needed under `use_weighting`.

    Raises:
        DiagError: a coupled loss, or an input that this loss needs is missing.
    """
    if spec.not_additive:
        raise DiagError("this loss has no per-pair value", got=spec.not_additive)
    a_, b_ = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    total = np.zeros(np.broadcast(a_, b_).shape)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for kind, factor in zip(spec.types, spec.term_weights, strict=True):
            if kind == "sft":
                s = _needed(chosen_sum_logp, "chosen_sum_logp", kind)
                n = _needed(n_chosen, "n_chosen", kind)
                total = total + factor * (-s * (s.size / n.sum()))
                continue
            lengths = None
            if kind in ("ipo", "sigmoid_norm"):
                lengths = (
                    np.maximum(_needed(n_chosen, "n_chosen", kind), 1.0),
                    np.maximum(_needed(n_rejected, "n_rejected", kind), 1.0),
                )
            total = total + factor * _term(kind, spec, a_, b_, lengths)
        if spec.use_weighting:
            total = total * _needed(weight, "weight", "use_weighting")
    return np.asarray(total, dtype=np.float64)


def _needed(value: npt.ArrayLike | None, name: str, kind: str) -> FloatArray:
    if value is None:
        raise DiagError(f"{name} is not known", where=f"loss {kind}", hint="record token counts (full pair records)")
    return np.asarray(value, dtype=np.float64)


def _term(
    kind: str, spec: LossSpec, a: FloatArray, b: FloatArray, lengths: tuple[FloatArray, FloatArray] | None
) -> FloatArray:
    """One additive term; formulas in the order of TRL 1.16's DPOTrainer._compute_loss."""
    beta, eps = spec.beta, spec.label_smoothing
    if kind == "nca_pair":
        return -log_sigmoid(beta * a) - 0.5 * log_sigmoid(-beta * a) - 0.5 * log_sigmoid(-beta * b)
    if kind == "sppo_hard":
        return (a - 0.5 / beta) ** 2 + (b + 0.5 / beta) ** 2
    if kind == "apo_zero":
        return sigmoid(-beta * a) + sigmoid(beta * b)
    if kind == "apo_down":
        return sigmoid(beta * a) + sigmoid(-beta * (a - b))
    score_a, score_b = scores(spec, a), scores(spec, b)
    if lengths is not None:
        score_a, score_b = score_a / lengths[0], score_b / lengths[1]
    delta = score_a - score_b
    logits = beta * delta
    if kind in ("sigmoid", "sigmoid_norm"):
        return -log_sigmoid(logits)
    if kind == "cdpo":
        return -(1 - eps) * log_sigmoid(logits) - eps * log_sigmoid(-logits)
    if kind == "robust":
        return (-(1 - eps) * log_sigmoid(logits) + eps * log_sigmoid(-logits)) / (1 - 2 * eps)
    if kind == "hinge":
        hinge: FloatArray = np.maximum(1.0 - logits, 0.0)
        return hinge
    if kind == "ipo":
        return np.square(delta - 1.0 / (2.0 * beta))
    if kind == "exo_pair":
        won, lost = sigmoid(logits), sigmoid(-logits)
        clean, flipped = float(np.log1p(-eps)), float(np.log(eps))
        return won * (log_sigmoid(logits) - clean) + lost * (log_sigmoid(-logits) - flipped)
    if kind == "discopop":
        mix = sigmoid(logits / spec.discopop_tau)
        return -log_sigmoid(logits) * (1 - mix) + np.exp(-logits) * mix
    raise DiagError("unknown loss type", got=kind, expected=f"one of {ADDITIVE}")


def loss_floor(spec: LossSpec) -> float | None:
    """Greatest lower bound of the preference part of the loss over all (a, b); None if there is none or it is unknown.

    0 for the sigmoid family, hinge, ipo and sppo_hard; with label smoothing eps cdpo cannot fall below the binary
    entropy of eps; robust is unbounded below; an SFT term has floor 0 but cannot reach it together with the rest.
    """
    total = 0.0
    for kind, factor in zip(spec.types, spec.term_weights, strict=True):
        if kind in ("sigmoid", "sigmoid_norm") and spec.f_divergence_type != "reverse_kl":
            return None
        if kind in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "sppo_hard", "apo_zero", "apo_down", "sft", "exo_pair"):
            continue
        if kind == "cdpo":
            eps = spec.label_smoothing
            total += factor * float(-(1 - eps) * np.log1p(-eps) - (eps * np.log(eps) if eps > 0 else 0.0))
        elif kind == "robust" and spec.label_smoothing == 0.0:
            continue
        else:
            return None
    return total


def loss_at_reference(spec: LossSpec) -> float:
    """The loss of a policy that equals its reference (a = b = 0), SFT terms left out: ln 2 for sigmoid."""
    preference = [(t, w) for t, w in zip(spec.types, spec.term_weights, strict=True) if t != "sft"]
    one = np.ones(1)
    return float(
        sum(
            w * _term(t, spec, 0 * one, 0 * one, (one, one) if t in ("ipo", "sigmoid_norm") else None)[0]
            for t, w in preference
        )
    )
