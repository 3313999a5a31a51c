"""Losses that a log's name leaves open (no per-pair formula here, or an NLL weight or a margin that the name does not
tell); and what a loss's name alone tells of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpo_diag.errors import DiagError
from dpo_diag.losses.registry import LOSSES
from dpo_diag.losses.spec import LossSpec
from dpo_diag.losses.values import loss_at_reference


@dataclass(frozen=True)
class NamedLoss:
    """A loss known by name.

    Attributes:
        reference: its rewards are log-ratios to a reference, not log-probs themselves.
        start: its value where the policy equals its reference, with the default weights; None where it has none.
        per_token: it is defined on means over a response's tokens.
    """

    source: str
    reference: bool
    start: float | None = None
    per_token: bool = False


NAMED: dict[str, NamedLoss] = {
    "orpo": NamedLoss("ORPO, arXiv 2403.07691", reference=False, per_token=True),
    "simpo": NamedLoss("SimPO, arXiv 2405.14734", reference=False, per_token=True),
    "cpo": NamedLoss("CPO, arXiv 2401.08417", reference=False),
    "cpo_simpo": NamedLoss("CPO with SimPO's length normalisation", reference=False, per_token=True),
    "alphapo": NamedLoss("AlphaPO, arXiv 2501.03884", reference=False, per_token=True),
    "kto": NamedLoss("KTO, arXiv 2402.01306", reference=True, start=0.5),
    "kto_pair": NamedLoss("KTO over pairs, TRL until 0.9", reference=True, start=0.5),
    "bco": NamedLoss("BCO, arXiv 2404.04656", reference=True),
}
_SPELLINGS = {
    "dpo": "sigmoid", "dpoloss": "sigmoid", "hingeloss": "hinge", "ipoloss": "ipo", "dpo_norm": "sigmoid_norm",
    "simpoloss": "simpo", "simposigmoidloss": "simpo", "cpoloss": "cpo", "ktoloss": "kto", "ktopairloss": "kto_pair",
    "orpoloss": "orpo",
}  # fmt: skip


def loss_name(raw: str) -> str:
    """A loss as we name it, from how a configuration or a user spells it.

    >>> loss_name("DPOLoss"), loss_name("CPO-SimPO"), loss_name("ipo")
    ('sigmoid', 'cpo_simpo', 'ipo')
    """
    lower = raw.strip().lower().replace("-", "_")
    return _SPELLINGS.get(lower, lower)


def names_of(text: str | None) -> tuple[str, ...]:
    """The loss types of `--loss`: one, or several joined by commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def check_names(names: Sequence[str]) -> None:
    """Raise where a user's loss is none that is known.

    Raises:
        DiagError: naming those that are.
    """
    unknown = [name for name in names if name not in LOSSES and name not in NAMED]
    if unknown:
        known = ", ".join(sorted({*LOSSES, *NAMED}))
        raise DiagError("unknown loss type", where="--loss", got=", ".join(unknown), expected=known, usage=True)


def has_no_reference(names: Sequence[str]) -> bool:
    """Whether a loss of these names takes its rewards from log-probs alone."""
    return any(name in NAMED and not NAMED[name].reference for name in names)


def is_per_token(names: Iterable[str]) -> bool:
    """Whether a loss of these names takes means over a response's tokens instead of sums.

    >>> [is_per_token(names) for names in (["sigmoid", "sft"], ["sigmoid", "ipo"], ["cpo_simpo"], ["unheard_of"])]
    [False, True, True, False]
    """
    kinds = [LOSSES[name] if name in LOSSES else NAMED.get(name) for name in names]
    return any(kind is not None and kind.per_token for kind in kinds)


def has_nll(names: Iterable[str]) -> bool:
    """Whether a loss of these names raises chosen's log-prob by a term of its own.

    >>> [has_nll(names) for names in (["sigmoid"], ["dpop", "sft_sum"], ["unheard_of"])]
    [False, True, False]
    """
    return any(name in LOSSES and not LOSSES[name].preference for name in names)


def start_of(names: Sequence[str]) -> tuple[float, bool] | None:
    """The loss at the reference by its name alone, and whether nothing else could move it; None where it depends on
    coefficients (ipo's on beta), or on more than the reference."""
    if not names or has_no_reference(names):
        return None
    if len(names) == 1 and names[0] in NAMED:
        start = NAMED[names[0]].start
        return None if start is None else (start, False)  # its weights may be others
    if any(name not in LOSSES or LOSSES[name].needs_smoothing for name in names):
        return None
    try:
        first, second = (loss_at_reference(LossSpec(types=tuple(names), beta=beta)) for beta in (0.1, 1.0))
    except DiagError:
        return None  # a loss that couples the pairs of a batch
    return (first, not has_nll(names)) if first == second else None
