"""The loss of a training as far as its arguments tell: a callback sees nothing else of a trainer."""

from __future__ import annotations

from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.losses.named import NAMED, loss_name

_NAMED_BY_CLASS = {"ORPOConfig": "orpo", "KTOConfig": "kto", "BCOConfig": "bco"}
_WHY = {"orpo": "its trainer's NLL term counts the prompt's tokens, which pair records do not hold"}


def loss_facts(arguments: Any) -> dict[str, Any]:
    """Fields of run.json: `loss`, or `loss_reason` with `loss_names` and `beta` where they are known; `reference_free`.

    TRL's configurations are known by the names of their classes, and so are those of trainers that inherit from them
    (ms-swift, axolotl). Attributes that a version does not have keep the loss's default.
    """
    classes = [kind.__name__ for kind in type(arguments).__mro__]
    if "DPOConfig" in classes:
        try:
            return {"loss": _dpo(arguments)}
        except DiagError as error:
            return {"loss_reason": f"{error.what}: {error.got}", "beta": float(arguments.beta)}
    if "CPOConfig" in classes:
        return {"reference_free": True, **_cpo(arguments)}
    named = next((name for kind, name in _NAMED_BY_CLASS.items() if kind in classes), None)
    if named is None:
        return {"loss_reason": f"{classes[0]} names no preference loss"}
    free = {} if NAMED[named].reference else {"reference_free": True}
    return _named(named, arguments, _WHY.get(named, "no per-pair formula is made from its trainer's arguments")) | free


def _named(name: str, arguments: Any, why: str) -> dict[str, Any]:
    return {
        "loss_reason": f"{NAMED[name].source}: {why}", "loss_names": (name,), "beta": float(arguments.beta),
    }  # fmt: skip


def _cpo(arguments: Any) -> dict[str, Any]:
    """Of TRL's CPO trainer, whose NLL term is the mean over the batch's chosen tokens, as kind sft is."""
    kind, gamma = str(getattr(arguments, "loss_type", "sigmoid")), getattr(arguments, "simpo_gamma", None)
    if getattr(arguments, "alpha", 0.0):
        return _named("alphapo", arguments, "its rewards are no log-probs")
    if kind not in ("sigmoid", "simpo"):
        return _named("cpo", arguments, f"loss_type {kind} without a reference has no per-pair formula here")
    own, sft = "cpo" if kind == "sigmoid" else "simpo", float(getattr(arguments, "cpo_alpha", 1.0))
    spec = LossSpec(
        types=(own, "sft") if sft else (own,), weights=(1.0, sft) if sft else (), beta=float(arguments.beta),
        label_smoothing=float(getattr(arguments, "label_smoothing", 0.0) or 0.0),
        coefficients={"simpo_gamma": float(gamma)} if own == "simpo" and gamma is not None else {},
    )  # fmt: skip
    return {"loss": spec}


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
