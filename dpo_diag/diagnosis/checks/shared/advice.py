"""What to do when a check speaks: each line of advice with the conditions under which it may be given.

A check sees one thing; advice depends on the whole run: to raise beta helps no run that diverged at beta 2, and nothing
about the loss can be advised while its numbers are NaN or its rewards are taken against a wrong reference. So a line
declares its conditions, the page of the check shows them, and `Situation` is what they look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpo_diag.losses import has_nll, is_per_token
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.thresholds import Thresholds, defaults

if TYPE_CHECKING:
    from dpo_diag.diagnosis.checks.shared.context import CheckContext

ROUNDING = 1e-6
"""A loss that moved by less stayed where it was."""
BOUNDED = frozenset({"ipo", "apo_zero"})
"""Losses that do not ask for an ever lower rejected side."""


@dataclass(frozen=True)
class Situation:
    """What happened in a run, as far as advice depends on it; None where the run does not tell.

    Attributes:
        loss: direction of the loss, +1, 0 (not distinguishable from no change), -1.
        per_token: whether log-ratios are means over a response's tokens.
        clipped_at: the norm to which gradients are clipped.
        findings: code -> its evidence, of the checks that speak; their severities in `severities`.
    """

    loss: int | None = None
    beta: float | None = None
    types: tuple[str, ...] = ()
    per_token: bool = False
    reference_free: bool = False
    learning_rate: float | None = None
    epochs: float | None = None
    clipped_at: float | None = None
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    severities: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, ctx: CheckContext, findings: Iterable[Mapping[str, Any]], t: Thresholds) -> Situation:
        """From a run and what its checks found."""
        info, spoke = ctx.info, [f for f in findings if f["outcome"] == "speaks"]
        types = tuple(info.loss.types if info.loss is not None else info.loss_names)
        if not types and info.loss_like:
            types = (info.loss_like,)
        rates = ctx.maybe(ctx.logged.training, "learning_rate", 1)
        peak = float(rates.values.max()) if rates is not None else None
        return cls(
            loss=loss_direction(ctx, t),
            beta=info.beta,
            types=types,
            per_token=(ctx.mean_logps and info.logps is not None) or is_per_token(types),
            reference_free=ctx.reference_free,
            learning_rate=info.training.learning_rate if info.training.learning_rate is not None else peak,
            epochs=info.training.num_train_epochs,
            clipped_at=info.training.max_grad_norm,
            findings={str(f["code"]): f["evidence"] for f in spoke},
            severities={str(f["code"]): str(f["severity"]) for f in spoke},
        )


def loss_direction(ctx: CheckContext, t: Thresholds) -> int | None:
    """Where the loss went: of the pairs, else of a fixed set, else of the training batches; None where none tells.

    A loss that starts at its reference fell where it ends below its known start, whenever the first row was logged.
    """
    change = ctx.maybe(ctx.pairs.change)
    if change is not None:
        before, after = (ctx.pairs.losses(frame) for frame in change)
        moved = ctx.pairs.intervals(t).mean(after - before, change[1].index)
        if moved.n >= LEAST_FOR_T:
            return moved.sign
    known = ctx.known_start(t)
    start = math.nan if known is None else known
    fixed = ctx.maybe(ctx.logged.fixed, "loss", 2)
    if fixed is not None:
        moved_by = float(fixed.values[-1]) - (start if math.isfinite(start) else float(fixed.values[0]))
        return 0 if abs(moved_by) < ROUNDING else 1 if moved_by > 0 else -1
    logged = ctx.maybe(ctx.logged.training, "loss")
    trend = None if logged is None else logged.ends(t["confidence"])
    if trend is None:
        return None
    from_start = trend.level if math.isnan(start) else trend.level.shifted(-start)
    if trend.change.below or (math.isfinite(start) and from_start.below):
        return -1
    return 1 if trend.change.above and (math.isnan(start) or from_start.above) else 0


@dataclass(frozen=True)
class Condition:
    """Something that must hold before a line is given; `words` may name thresholds in braces."""

    words: str
    holds: Callable[[Situation, Thresholds], bool]

    def __str__(self) -> str:
        return self.words.format_map({k.rpartition(".")[2]: f"{v:g}" for k, v in defaults().items()})


@dataclass(frozen=True)
class Advice:
    """One line of advice and its conditions; a plain text in `try_next` is one with `SOUND` alone."""

    text: str
    when: tuple[Condition, ...]

    def given(self, situation: Situation, t: Thresholds) -> bool:
        """Whether all conditions hold."""
        return all(condition.holds(situation, t) for condition in self.when)

    def __str__(self) -> str:
        shown = [str(c) for c in self.when if c is not SOUND]
        return self.text + (f" (given where {'; '.join(shown)})" if shown else "")


SOUND = Condition(
    "no number is NaN at the end or implausible",
    lambda s, t: s.severities.get("DVG011") != "error" and s.severities.get("DVG028") != "error",
)
REFERENCE_RIGHT = Condition(
    "the reference is not wrong (DVG007)",
    lambda s, t: "DVG007" not in s.findings or s.severities.get("DVG007") == "warning",
)
TRAINED = Condition("something was trained (DVG008)", lambda s, t: "DVG008" not in s.findings)
FELL = Condition(
    "the loss fell, or is not known", lambda s, t: s.loss in (-1, None) and not {"DVG020", "DVG009"} & s.findings.keys()
)
WENT_WRONG = Condition(
    "chosen fell (DVG001), or the loss rose, or averages disagree (DVG003), or a task score fell (DVG025)",
    lambda s, t: s.loss == 1 or bool({"DVG001", "DVG003", "DVG020", "DVG025"} & s.findings.keys()),
)
NOT_WORSE = Condition("the loss did not rise beyond its noise", lambda s, t: s.loss != 1 and "DVG020" not in s.findings)
ROSE = Condition("the loss rose", lambda s, t: s.loss == 1 or "DVG020" in s.findings)
BETA_SMALL = Condition(
    "beta is known, below {beta_small}, and weighs sums of log-probs against a reference",
    lambda s, t: s.beta is not None and s.beta < t["remedies.beta_small"] and not s.per_token and not s.reference_free,
)
BETA_LARGE = Condition(
    "beta is {beta_large} or more and weighs sums of log-probs",
    lambda s, t: s.beta is not None and s.beta >= t["remedies.beta_large"] and not s.per_token and not s.reference_free,
)
RATE_CAN_FALL = Condition(
    "the learning rate is not known to be {rate_low} or less",
    lambda s, t: s.learning_rate is None or s.learning_rate > t["remedies.rate_low"],
)
RATE_LOW = Condition(
    "the learning rate is known and below {rate_high}",
    lambda s, t: s.learning_rate is not None and s.learning_rate < t["remedies.rate_high"],
)
RATE_HIGH = Condition(
    "the learning rate is {rate_high} or more",
    lambda s, t: s.learning_rate is not None and s.learning_rate >= t["remedies.rate_high"],
)
RATE_UNKNOWN = Condition("the learning rate is not recorded", lambda s, t: s.learning_rate is None)
NO_SFT_TERM = Condition("the loss has no SFT term", lambda s, t: not has_nll(s.types))
UNBOUNDED = Condition(
    "the loss is known and asks for an ever lower rejected side",
    lambda s, t: bool(s.types) and not BOUNDED & set(s.types),
)
WITH_REFERENCE = Condition("the loss has a reference", lambda s, t: not s.reference_free)
SUMS = Condition("the loss sums log-probs", lambda s, t: not s.per_token)
NOT_MEASURED = Condition(
    "no task score decided (DVG018, DVG025)", lambda s, t: not {"DVG018", "DVG025"} & s.findings.keys()
)
NOT_CLIPPED = Condition(
    "gradients are not known to be clipped at 1 or less",
    lambda s, t: s.clipped_at is None or not 0 < s.clipped_at <= 1,
)
SEVERAL_EPOCHS = Condition(
    "the run is not known to have had one epoch or less", lambda s, t: s.epochs is None or s.epochs > 1
)
PERPLEXITY_ORDERS = Condition(
    "perplexity does not prefer the rejected answers (DVG029)", lambda s, t: "DVG029" not in s.findings
)
DISPLACED = Condition("chosen fell (DVG001)", lambda s, t: "DVG001" in s.findings)
LOSS_TAUGHT = (SOUND, TRAINED, REFERENCE_RIGHT, FELL)
"""Conditions of advice that changes what a falling loss does."""
LOWER_RATE = Advice("lower the learning rate", (SOUND, TRAINED, REFERENCE_RIGHT, RATE_CAN_FALL))
RAISE_BETA = Advice("raise beta: the same loss is then reached with a smaller move", (*LOSS_TAUGHT, BETA_SMALL))
SFT_TERM = Advice(
    "add an SFT term on the chosen answers (TRL: loss_type with 'sft' beside the loss)", (*LOSS_TAUGHT, NO_SFT_TERM)
)


def has(code: str, key: str, value: object = True) -> Condition:
    """The check's own evidence says so: `value` is its `key`, or stands in the list that `key` holds."""

    def holds(situation: Situation, t: Thresholds) -> bool:
        found = situation.findings.get(code, {}).get(key)
        return value in found if isinstance(found, (list, tuple)) else found == value

    return Condition(f"its evidence says {key}: {value}".replace(": True", ""), holds)


def advice(line: str | Advice) -> Advice:
    """A line of a check's `try_next` with its conditions."""
    return line if isinstance(line, Advice) else Advice(line, (SOUND,))
