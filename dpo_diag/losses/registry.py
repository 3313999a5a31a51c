"""What a kind of loss is, and the registry of all kinds: TRL's, this project's, and those that a plugin adds.

A formula is written once, with arithmetic and the functions of `Ops`, so that the same lines give float64 numbers
for the analysis and a gradient in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from dpo_diag.errors import DiagError
from dpo_diag.registry import Registry

if TYPE_CHECKING:
    from dpo_diag.losses.spec import LossSpec

FloatArray = npt.NDArray[np.float64]
Values = Any
"""(pairs,): a float64 array, or a torch tensor with a gradient."""


class Ops(Protocol):
    """The functions that a formula may use beside arithmetic; numpy's here, torch's in training.trl_adapter."""

    def log_sigmoid(self, x: Values) -> Values:
        """log(1 / (1 + exp(-x))), without overflow."""

    def exp(self, x: Values) -> Values:
        """e to the x."""

    def log1mexp(self, x: Values) -> Values:
        """log(1 - e to the x) for x below 0, exact near 0 and far below it."""

    def at_least(self, x: Values, low: float) -> Values:
        """x, or `low` where x is below it."""

    def at_most(self, x: Values, high: float) -> Values:
        """x, or `high` where x is above it."""

    def total(self, x: Values) -> Values:
        """The sum over pairs."""


class _Numpy:
    def log_sigmoid(self, x: Values) -> Values:
        return -np.logaddexp(0.0, -x)

    def exp(self, x: Values) -> Values:
        return np.exp(x)

    def log1mexp(self, x: Values) -> Values:
        # Either form loses its digits where the other keeps them (Maechler 2012).
        near = x > -np.log(2.0)
        return np.where(near, np.log(-np.expm1(np.where(near, x, -0.5))), np.log1p(-np.exp(np.where(near, -1.0, x))))

    def at_least(self, x: Values, low: float) -> Values:
        return np.maximum(x, low)

    def at_most(self, x: Values, high: float) -> Values:
        return np.minimum(x, high)

    def total(self, x: Values) -> Values:
        return x.sum()


NUMPY: Ops = _Numpy()


@dataclass(frozen=True)
class Pairs:
    """What a formula sees of a batch; every value has shape (pairs,), or is None where it is not known.

    Attributes:
        a, b: log-ratios to the reference of chosen and rejected (nats).
        n_chosen, n_rejected: response tokens.
        chosen_sum_logp, rejected_sum_logp: nats, of the policy.
        weight: WPO weight of each pair.
        beta: of each pair, where it is the pair's own and not the loss's.
    """

    a: Values
    b: Values
    n_chosen: Values | None = None
    n_rejected: Values | None = None
    chosen_sum_logp: Values | None = None
    rejected_sum_logp: Values | None = None
    weight: Values | None = None
    ops: Ops = NUMPY
    beta: Values | None = None

    def need(self, name: str, kind: str) -> Values:
        """One of the optional values.

        Raises:
            DiagError: it is not known.
        """
        value = getattr(self, name)
        if value is None:
            hint = "record token counts (full pair records)"
            raise DiagError(f"{name} is not known", where=f"loss {kind}", hint=hint)
        return value

    def sums(self, kind: str) -> tuple[Values, Values]:
        """The policy's log-probs of chosen and rejected (nats), for a loss that has no reference."""
        return self.need("chosen_sum_logp", kind), self.need("rejected_sum_logp", kind)

    def means(self, kind: str) -> tuple[Values, Values]:
        """The same per token (nats)."""
        chosen, rejected = self.sums(kind)
        n, m = (self.ops.at_least(self.need(name, kind), 1.0) for name in ("n_chosen", "n_rejected"))
        return chosen / n, rejected / m

    def sigmoid(self, x: Values) -> Values:
        """1 / (1 + exp(-x)), without overflow."""
        return self.ops.exp(self.ops.log_sigmoid(x))

    def scores(self, spec: LossSpec) -> tuple[Values, Values]:
        """f'(exp(ratio)) of the f-divergence (arXiv 2309.16240), both sides: for reverse KL the ratios."""
        return self._score(spec, self.a), self._score(spec, self.b)

    def _score(self, spec: LossSpec, ratio: Values) -> Values:
        if spec.f_divergence_type == "forward_kl":
            return 1.0 - self.ops.exp(-ratio)
        if spec.f_divergence_type == "js_divergence":
            return float(np.log(2.0)) + self.ops.log_sigmoid(ratio)
        # At alpha 1 the divergence is reverse KL in the limit; 1e-6 is where TRL switches.
        if spec.f_divergence_type == "alpha_divergence" and abs(spec.f_alpha_divergence_coef - 1.0) >= 1e-6:
            power = spec.f_alpha_divergence_coef - 1.0
            # 80 is TRL's clamp in float32; without it the same pair would give another loss here than there.
            return (self.ops.exp(self.ops.at_most(power * ratio, 80.0)) - 1.0) / power
        return ratio

    def logits(self, spec: LossSpec, *, per_token: str | None = None) -> Values:
        """beta times the difference of the scores; with `per_token` (the loss that asks) each over its tokens first."""
        chosen, rejected = self.scores(spec)
        if per_token is not None:
            chosen = chosen / self.ops.at_least(self.need("n_chosen", per_token), 1.0)
            rejected = rejected / self.ops.at_least(self.need("n_rejected", per_token), 1.0)
        return spec.beta * (chosen - rejected)


def zero_floor(spec: LossSpec) -> float | None:
    """A loss that comes as near to 0 as one likes."""
    return 0.0


def no_floor(spec: LossSpec) -> float | None:
    """A loss that has no lower bound, or none that is known."""
    return None


@dataclass(frozen=True)
class Coefficient:
    """A number of a kind's own, beside beta and label smoothing.

    Attributes:
        default: its value where `loss.coefficients` does not give one.
        origin: where that value comes from.
        low, high: it lies between them, both excluded where `open`.
    """

    default: float
    origin: str
    low: float = 0.0
    high: float = float("inf")
    open: bool = False

    def allows(self, value: float) -> bool:
        """Whether a training may use this value."""
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    @property
    def range(self) -> str:
        """What is allowed, in words."""
        if self.high == float("inf"):
            return f"{'more than' if self.open else 'at least'} {self.low:g}"
        return f"{self.low:g} to {self.high:g}{', both excluded' if self.open else ''}"


@dataclass(frozen=True)
class Loss:
    """One kind of loss, by the name that `loss.types` gives it.

    Attributes:
        formula: (spec, pairs) -> (pairs,), the mean of which is the batch's loss; None for a loss that couples the
            pairs of a batch (by sorting, or a running mean), which has no value per pair.
        source: paper, or where the definition stands.
        in_trl: TRL 1.16 computes it under this name; any other is computed by DiagDPOTrainer from TRL's own forward.
        floor: greatest lower bound over all (a, b), None where there is none or it is not known.
        turns_at: the margin beta (a - b) at which it is least and beyond which it rises; None where there is none.
        preference: it compares the two sides; False for a term that has no value at the reference, like an NLL term.
        smooths: it uses `label_smoothing`; needs_smoothing: it takes its logarithm.
        per_token: its log-ratios are means over a response's tokens, so that it needs their number and its beta is
            another quantity.
        reference: it looks at a and b; a loss of which no kind does is trained without a reference.
        needs: fields of `Pairs` that it looks at beside a, b and the weight; per_token brings the token counts.
        coefficients: numbers of its own, by the name that `loss.coefficients` gives them.
    """

    formula: Callable[[LossSpec, Pairs], Values] | None
    source: str
    in_trl: bool = False
    floor: Callable[[LossSpec], float | None] = zero_floor
    turns_at: Callable[[LossSpec], float | None] = no_floor
    preference: bool = True
    smooths: bool = False
    needs_smoothing: bool = False
    per_token: bool = False
    reference: bool = True
    needs: tuple[str, ...] = ()
    coefficients: Mapping[str, Coefficient] = field(default_factory=dict)

    @property
    def inputs(self) -> frozenset[str]:
        """Fields of `Pairs` that it looks at, but a, b and the weight."""
        return frozenset(self.needs) | (frozenset(("n_chosen", "n_rejected")) if self.per_token else frozenset())


LOSSES: Registry[Loss] = Registry("loss type", "dpo_diag.losses.kinds")
"""Every kind of loss; `LOSSES.add("mine", Loss(...))` in a plugin adds one to training, explain and split."""
