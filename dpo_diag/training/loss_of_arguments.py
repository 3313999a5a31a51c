"""The loss of a training as far as its arguments tell: a callback sees nothing else of a trainer."""

from __future__ import annotations

from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.losses.named import NAMED, loss_name

_NAMED_BY_CLASS = {"ORPOConfig": "orpo", "CPOConfig": "cpo", "KTOConfig": "kto", "BCOConfig": "bco"}


def loss_facts(arguments: Any) -> dict[str, Any]:
    """Fields of run.json: `loss`, or `loss_reason` with `loss_names` and `beta` where they are known.

    TRL's configurations are known by the names of their classes, and so are those of trainers that inherit from them
    (ms-swift, axolotl). Attributes that a version does not have keep the loss's default.
    """
    classes = [kind.__name__ for kind in type(arguments).__mro__]
    if "DPOConfig" in classes:
        try:
            return {"loss": _dpo(arguments)}
        except DiagError as error:
            return {"loss_reason": f"{error.what}: {error.got}", "beta": float(arguments.beta)}
    named = next((name for kind, name in _NAMED_BY_CLASS.items() if kind in classes), None)
    if named is None:
        return {"loss_reason": f"{classes[0]} names no preference loss"}
    if named == "cpo" and getattr(arguments, "loss_type", None) == "simpo":
        named = "cpo_simpo" if getattr(arguments, "cpo_alpha", 0) else "simpo"
    why = f"{NAMED[named].source}: no per-pair formula is made from its trainer's arguments"
    return {"loss_reason": why, "loss_names": (named,), "beta": float(arguments.beta)}


def _dpo(arguments: Any) -> LossSpec:
    kinds = arguments.loss_type
    types = [loss_name(str(kind)) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    weights = [float(weight) for weight in getattr(arguments, "loss_weights", None) or ()]
    if (sft := getattr(arguments, "rpo_alpha", None)) is not None:  # TRL until 0.28
        types, weights = [*types, "sft"], [*(weights or [1.0] * len(types)), float(sft)]
    divergence = getattr(arguments, "f_divergence_type", "reverse_kl")
    own = ("f_alpha_divergence_coef", "discopop_tau", "ld_alpha", "use_weighting")
    given = {name: value for name in own if (value := getattr(arguments, name, None)) is not None}
    return LossSpec(
        types=tuple(types), weights=tuple(weights), beta=float(arguments.beta),
        label_smoothing=float(getattr(arguments, "label_smoothing", 0.0) or 0.0),
        f_divergence_type=str(getattr(divergence, "value", divergence)), **given,
    )  # fmt: skip
