"""The description of a preference loss: one dataclass for conf/loss/*.yaml, the trainer, run.json and the analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.losses.registry import LOSSES

DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


@dataclass  # not frozen: OmegaConf makes a frozen node read-only, and Hydra could not set its keys
class LossSpec:
    """What a preference loss is made of; the names are TRL's DPOConfig's.

    Attributes:
        types: kinds of `LOSSES` that are added up.
        weights: one factor each; all 1 if empty.
        beta: inverse temperature (ipo: tau).
        ld_alpha: LD-DPO's factor on the tokens beyond the shorter response (arXiv 2409.06411); it changes the
            log-probs that enter a and b (column `loss_logp`), not the loss.
        use_weighting: WPO (arXiv 2406.11827): each pair's loss times its detached weight.
        coefficients: of the kinds' own numbers (`Loss.coefficients`), those that are not the default.

    Raises:
        DiagError: an unknown kind or divergence, another number of weights than types.
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
    coefficients: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Hydra and JSON have lists only.
        self.types, self.weights = tuple(self.types), tuple(self.weights)
        self.coefficients = {str(name): float(value) for name, value in self.coefficients.items()}
        unknown = [t for t in self.types if t not in LOSSES]
        if unknown or not self.types:
            expected = f"some of {', '.join(LOSSES)}"
            raise DiagError("unknown loss type", got=unknown or "none", expected=expected, usage=True)
        if self.weights and len(self.weights) != len(self.types):
            expected = f"{len(self.types)} weights"
            raise DiagError("one weight per loss type", got=self.weights, expected=expected, usage=True)
        if self.f_divergence_type not in DIVERGENCES:
            expected = f"one of {DIVERGENCES}"
            raise DiagError("unknown f-divergence", got=self.f_divergence_type, expected=expected, usage=True)

    def check_trainable(self) -> None:
        """What a record may hold and a training may not.

        Raises:
            DiagError: beta that is not positive; label smoothing out of range, missing where it is needed, or given
                where nothing uses it; a coefficient that no kind has, or out of its range; LD-DPO or an f-divergence
                without a reference; LD-DPO where pairs have a beta of their own.
        """

        def wrong(key: str, got: object, expected: str) -> DiagError:
            return DiagError("configuration does not fit", where=f"loss.{key}", got=got, expected=expected, usage=True)

        if self.beta <= 0:
            raise wrong("beta", self.beta, "more than 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise wrong("label_smoothing", self.label_smoothing, "from 0 to below 0.5")
        for kind in self.types:
            if LOSSES[kind].needs_smoothing and self.label_smoothing == 0:
                raise wrong("label_smoothing", 0, f"more than 0: {kind} takes its logarithm")
        if self.label_smoothing and not any(LOSSES[kind].smooths for kind in self.types):
            smooth = ", ".join(kind for kind, loss in LOSSES.items() if loss.smooths)
            raise wrong(
                "label_smoothing", self.label_smoothing, f"0: {', '.join(self.types)} would not use it ({smooth} do)"
            )
        known = {name: own for kind in self.types for name, own in LOSSES[kind].coefficients.items()}
        for name, value in self.coefficients.items():
            if name not in known:
                raise DiagError(
                    "unknown coefficient", where=f"loss.coefficients.{name}", got=value, usage=True,
                    expected=f"one of {', '.join(known)}" if known else f"none: {', '.join(self.types)} has none",
                    hint=did_you_mean(name, known),
                )  # fmt: skip
            if not known[name].allows(value):
                raise wrong(f"coefficients.{name}", value, known[name].range)
        if not self.needs_reference and (self.ld_alpha is not None or self.f_divergence_type != "reverse_kl"):
            given = "ld_alpha" if self.ld_alpha is not None else "f_divergence_type"
            raise wrong(given, getattr(self, given), f"its default: {', '.join(self.types)} has no log-ratios")
        if self.has_pair_beta and self.ld_alpha is not None:
            raise wrong("ld_alpha", self.ld_alpha, "its default: a pair's own beta is found from its whole sums")

    def coefficient(self, kind: str, name: str) -> float:
        """A number of a kind's own: as given, else its default."""
        return self.coefficients.get(name, LOSSES[kind].coefficients[name].default)

    def value_of(self, name: str) -> float:
        """A coefficient by name: beta, a kind's weight by the kind's, or a kind's own number.

        Raises:
            DiagError: this loss has no such coefficient; or it has a kind twice.
        """
        if name == "beta":
            return self.beta
        if self.types.count(name) == 1:
            return self.term_weights[self.types.index(name)]
        owner = {own: kind for kind in self.types for own in LOSSES[kind].coefficients}
        if name in owner:
            return self.coefficient(owner[name], name)
        known = ("beta", *self.types, *owner)
        raise DiagError(
            "this loss has no such coefficient", where="loss", got=name, expected=f"one of {', '.join(known)}",
            hint=did_you_mean(name, known), usage=True,
        )  # fmt: skip

    def with_value(self, name: str, value: float) -> LossSpec:
        """The same loss with another value of one coefficient, named as for `value_of`.

        >>> LossSpec(types=("sigmoid", "sft")).with_value("sft", 0.5).weights
        (1.0, 0.5)
        """
        self.value_of(name)
        if name == "beta":
            return replace(self, beta=value)
        if name in self.types:
            weights = [value if kind == name else w for kind, w in zip(self.types, self.term_weights, strict=True)]
            return replace(self, weights=tuple(weights))
        return replace(self, coefficients={**self.coefficients, name: value})

    @property
    def needs_reference(self) -> bool:
        """Whether any term looks at the reference."""
        return any(LOSSES[kind].reference for kind in self.types)

    @property
    def inputs(self) -> frozenset[str]:
        """Fields of `Pairs` that its terms look at, but a, b and the weight."""
        return frozenset().union(*(LOSSES[kind].inputs for kind in self.types))

    @property
    def has_pair_beta(self) -> bool:
        """Whether each pair has a beta of its own."""
        return "beta" in self.inputs

    @property
    def counts_scored(self) -> bool:
        """Whether lengths are those of the scored tokens, as for a mean of log-probs. TRL divides ipo's and
        sigmoid_norm's log-ratios by all response tokens of the batch: one more where a response has no prompt before
        its first token, which then has no score."""
        return "chosen_sum_logp" in self.inputs

    @property
    def term_weights(self) -> tuple[float, ...]:
        """One factor per type."""
        return self.weights or (1.0,) * len(self.types)

    @property
    def not_additive(self) -> str | None:
        """Why this loss has no per-pair value, or None if it has one."""
        coupled = [t for t in self.types if LOSSES[t].formula is None]
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
        return cls(**{k: v for k, v in document.items() if k in known and v is not None})
