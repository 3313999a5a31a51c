"""The configuration of a schedule: which coefficient of the loss moves over the training, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpo_diag.errors import DiagError

if TYPE_CHECKING:
    from dpo_diag.config import Config


@dataclass
class ScheduleConfig:
    """How a coefficient of the loss moves: `kind` none (constant), linear, cosine or steered; see training.schedule.

    It begins at the value that `loss` gives it, and changes where the trainer logs (`trainer.logging_steps`).

    Attributes:
        of: beta, a kind of `loss.types` (its weight: sft) or a kind's own number (dpo_shift_lambda).
        end: of linear and cosine: the last value; over: the share of all steps after which it is reached.
        measured: of steered: what is held, as the trainer logs it: ce/chosen of the pairs trained on since the last
            log, eval_ce/chosen of an evaluation (nats per token).
        bound: the most that it may be: above it the coefficient is multiplied by `raise_by`, else by `lower_by`.
        least, most: what the coefficient stays between.
    """

    kind: str = "none"
    of: str = "sft"
    end: float | None = None
    over: float = 1.0
    measured: str = "ce/chosen"
    bound: float | None = None
    raise_by: float = 1.5
    lower_by: float = 0.9
    least: float = 0.01
    most: float = 10.0


KINDS = ("none", "linear", "cosine", "steered")


def check_schedule(config: Config) -> None:
    """The schedule is one that this loss can follow.

    Raises:
        DiagError: the first key that does not fit.
    """
    s = config.schedule

    def wrong(key: str, got: object, expected: str) -> DiagError:
        return DiagError("configuration does not fit", where=f"schedule.{key}", got=got, expected=expected, usage=True)

    if s.kind not in KINDS:
        raise wrong("kind", s.kind, f"one of {', '.join(KINDS)}")
    if s.kind == "none":
        return
    if config.trainer.method != "dpo":
        raise wrong("kind", s.kind, f"none: {config.trainer.method} has no loss with coefficients")
    start = config.loss.value_of(s.of)
    if s.kind != "steered":
        if s.end is None:
            raise wrong("end", "nothing", f"the last value of {s.of}")
        if not 0 < s.over <= 1:
            raise wrong("over", s.over, "a share above 0, at most 1")
        config.loss.with_value(s.of, s.end).check_trainable()
        return
    if s.bound is None:
        raise wrong("bound", "nothing", f"the most that {s.measured} may be (nats per token)")
    if not 0 < s.lower_by <= 1 <= s.raise_by:
        raise wrong("raise_by", f"{s.raise_by:g}, lower_by {s.lower_by:g}", "at least 1, and above 0 and at most 1")
    if not 0 < s.least <= start <= s.most:
        raise wrong("least", f"{s.least:g} to {s.most:g}", f"more than 0, and around {s.of}'s start of {start:g}")
    for value in (s.least, s.most):
        config.loss.with_value(s.of, value).check_trainable()
