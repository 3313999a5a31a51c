"""dpo_diag.losses against TRL 1.16's own `DPOTrainer._compute_loss`, fed with prescribed token log-probs.

The model is a stub that returns log-probs, so that every input (saturated, equal, long, uneven) can be reached; the
number compared is the one that TRL trains on. A few values are derived by hand, so that TRL is not the only judge.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.losses import LOSSES, LossSpec, loss_at_reference, pair_losses, start_of

TYPES = tuple(name for name, loss in LOSSES.items() if loss.in_trl and loss.formula)
COUPLED = tuple(name for name, loss in LOSSES.items() if loss.formula is None)
F_TYPES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
LENGTHS = np.array([[3, 5, 1, 4], [4, 2, 6, 4]])  # chosen, rejected; four pairs
PROMPT = 2


def batch(seed: int, spread: float = 1.0, equal: bool = False) -> dict[str, Any]:
    """Masks and token log-probs of four pairs, as tensors in TRL's layout: (8, 8), chosen rows first."""
    import torch

    draw = np.random.default_rng(seed)
    width = PROMPT + int(LENGTHS.max())
    mask = np.zeros((8, width), dtype=np.int64)
    for row, n in enumerate(LENGTHS.reshape(-1)):
        mask[row, PROMPT : PROMPT + n] = 1
    logp = -draw.exponential(1.5, (8, width - 1)).astype(np.float32) * mask[:, 1:]
    shift = np.zeros_like(logp) if equal else draw.normal(0, spread, logp.shape).astype(np.float32) * mask[:, 1:]
    square = (-draw.exponential(0.5, logp.shape)).astype(np.float32) * mask[:, 1:]
    values = {"logp": logp, "ref": logp + shift, "log_sum_sq": square}
    return {"mask": torch.from_numpy(mask)} | {k: torch.from_numpy(v.astype(np.float32)) for k, v in values.items()}


def stub_of(spec: LossSpec, data: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """(trainer, model, inputs) for TRL's own `_compute_loss`, whose forwards return these log-probs."""
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    def output(logp: torch.Tensor) -> FusedCausalLMOutput:
        blank = torch.zeros_like(logp)
        return FusedCausalLMOutput(
            log_probs=logp, entropy=blank, log_sum_sq_probs=data["log_sum_sq"], mean_logits=blank, is_top1=blank.bool()
        )

    def identity(value: torch.Tensor) -> torch.Tensor:
        return value

    trainer = SimpleNamespace(
        model=torch.nn.Identity().eval(),
        ref_model=lambda **_: output(data["ref"]),
        accelerator=SimpleNamespace(device="cpu", gather=identity, gather_for_metrics=identity),
        args=SimpleNamespace(discopop_tau=spec.discopop_tau, gradient_checkpointing_kwargs=None),
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        beta=spec.beta,
        loss_types=list(spec.types),
        loss_weights=list(spec.term_weights),
        label_smoothing=spec.label_smoothing,
        f_divergence_type=spec.f_divergence_type,
        f_alpha_divergence_coef=spec.f_alpha_divergence_coef,
        ld_alpha=spec.ld_alpha,
        use_weighting=spec.use_weighting,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    trainer.model.is_gradient_checkpointing = False
    inputs = {"input_ids": data["mask"], "attention_mask": data["mask"], "completion_mask": data["mask"]}
    return trainer, lambda **_: output(data["logp"]), inputs


def trl_loss(spec: LossSpec, data: dict[str, Any]) -> float:
    """What TRL's own method returns for these log-probs."""
    from trl import DPOTrainer

    trainer, model, inputs = stub_of(spec, data)
    return float(DPOTrainer._compute_loss(trainer, model, inputs, False))


def our_loss(spec: LossSpec, data: dict[str, Any]) -> float:
    """The same from sums, each formed here by a plain loop over tokens."""
    sums: dict[str, np.ndarray] = {}
    for name in ("logp", "ref"):
        total = np.zeros(8)
        for row in range(8):
            scored = [float(x) for x, m in zip(data[name][row], data["mask"][row, 1:], strict=True) if m]
            shared = int(LENGTHS[:, row % 4].min())
            for position, value in enumerate(scored):
                total[row] += value if spec.ld_alpha is None or position < shared else spec.ld_alpha * value
        sums[name] = total.reshape(2, 4)
    weight = np.ones(4)
    plain = np.array([float(data["logp"][row].double().sum()) for row in range(8)]).reshape(2, 4)
    for row in range(8):
        n = LENGTHS.reshape(-1)[row]
        inside = data["mask"][row, 1:].bool()
        weight[row % 4] *= math.exp(float((data["logp"][row] - data["log_sum_sq"][row])[inside].double().sum()) / n)
    losses = pair_losses(
        spec, sums["logp"][0] - sums["ref"][0], sums["logp"][1] - sums["ref"][1], n_chosen=LENGTHS[0],
        n_rejected=LENGTHS[1], chosen_sum_logp=plain[0], weight=weight,
    )  # fmt: skip
    return float(losses.mean())


def check(spec: LossSpec, data: dict[str, Any]) -> None:
    expected = trl_loss(spec, data)
    assert our_loss(spec, data) == pytest.approx(expected, rel=2e-5, abs=2e-6), spec


def smoothing(kind: str) -> float:
    return {"exo_pair": 1e-3, "robust": 0.2}.get(kind, 0.0)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_every_additive_type_is_trls(kind: str, beta: float) -> None:
    for seed, spread in ((0, 1.0), (1, 0.01), (2, 8.0 if kind != "discopop" else 2.0)):
        check(LossSpec(types=(kind,), beta=beta, label_smoothing=smoothing(kind)), batch(seed, spread))


@pytest.mark.parametrize("kind", ["exo_pair", "robust"])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.4])
def test_label_smoothing_is_trls(kind: str, eps: float) -> None:
    check(LossSpec(types=(kind,), label_smoothing=eps), batch(3))


def test_trls_sigmoid_ignores_label_smoothing() -> None:
    data = batch(4)
    assert trl_loss(LossSpec(label_smoothing=0.3), data) == trl_loss(LossSpec(), data)
    check(LossSpec(label_smoothing=0.3), data)


@pytest.mark.parametrize("kind", F_TYPES)
@pytest.mark.parametrize(
    ("divergence", "alpha"),
    [("forward_kl", 0.5), ("js_divergence", 0.5), ("alpha_divergence", 0.3), ("alpha_divergence", 1.0),
     ("alpha_divergence", 2.0)],
)  # fmt: skip
def test_f_divergences_are_trls(kind: str, divergence: str, alpha: float) -> None:
    spec = LossSpec(
        types=(kind,), f_divergence_type=divergence, f_alpha_divergence_coef=alpha, label_smoothing=smoothing(kind)
    )
    check(spec, batch(5, 0.4))


def test_the_alpha_divergence_is_clamped_where_trl_clamps_it() -> None:
    data = batch(6, 60.0)
    spec = LossSpec(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=2.0)
    check(spec, data)
    assert our_loss(spec, data) > 1e30  # a pair beyond the clamp is in the mean: exp(80) = 5.5e34


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_ld_alpha_is_trls(kind: str, alpha: float) -> None:
    check(LossSpec(types=(kind,), ld_alpha=alpha, label_smoothing=smoothing(kind)), batch(7))


@pytest.mark.parametrize("kind", [t for t in TYPES if t != "sft"])
def test_wpo_weights_are_trls(kind: str) -> None:
    check(LossSpec(types=(kind,), use_weighting=True, label_smoothing=smoothing(kind)), batch(8))


@pytest.mark.parametrize(
    ("types", "weights"),
    [(("sigmoid", "sft"), ()), (("sigmoid", "sft"), (0.8, 0.2)), (("ipo", "hinge", "apo_zero"), (1.0, 2.0, -0.5)),
     (("sigmoid_norm", "nca_pair"), (0.3, 0.7))],
)  # fmt: skip
def test_weighted_sums_of_types_are_trls(types: tuple[str, ...], weights: tuple[float, ...]) -> None:
    check(LossSpec(types=types, weights=weights), batch(9))


@pytest.mark.parametrize("kind", [t for t in TYPES if t != "sft"])
def test_the_loss_at_the_reference_is_trls(kind: str) -> None:
    spec = LossSpec(types=(kind,), label_smoothing=smoothing(kind))
    assert loss_at_reference(spec) == pytest.approx(trl_loss(spec, batch(10, equal=True)), abs=1e-6)


def test_values_by_hand() -> None:
    """beta 0.5, a = 2, b = -2: beta (a - b) = 2.

    sigmoid log(1 + e^-2); hinge max(0, 1 - 2) = 0; ipo over 4 and 2 tokens ((0.5 + 1) - 1)^2 = 0.25; sppo_hard
    (2 - 1)^2 + (-2 + 1)^2 = 2; apo_zero 2 / (1 + e) since both sides are sigmoid(-1).
    """

    def value(kind: str) -> float:
        return float(pair_losses(LossSpec(types=(kind,), beta=0.5), [2.0], [-2.0], n_chosen=[4], n_rejected=[2])[0])

    assert value("sigmoid") == pytest.approx(math.log1p(math.exp(-2)), abs=1e-15)
    assert value("hinge") == 0.0
    assert value("ipo") == pytest.approx(0.25, abs=1e-15)
    assert value("sppo_hard") == pytest.approx(2.0, abs=1e-15)
    assert value("apo_zero") == pytest.approx(2 / (1 + math.e), abs=1e-15)
    assert loss_at_reference(LossSpec()) == pytest.approx(math.log(2), abs=1e-15)


def test_cdpo_is_a_mixture_of_both_orders() -> None:
    """(1 - 0.25) L + 0.25 L_flipped with L = log(1 + e^-1), L_flipped = log(1 + e): 0.3133 * .75 + 1.3133 * .25."""
    spec = LossSpec(types=("cdpo",), beta=1.0, label_smoothing=0.25)
    expected = 0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.e)
    assert float(pair_losses(spec, [1.0], [0.0])[0]) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", COUPLED)
def test_coupled_losses_are_refused_by_name(kind: str) -> None:
    with pytest.raises(DiagError, match=kind):
        pair_losses(LossSpec(types=(kind,)), [1.0], [0.0])


def test_every_type_of_trl_is_known() -> None:
    """A type that TRL gains must not slip through: the message of TRL's own error lists them all."""
    with pytest.raises(ValueError, match="Unknown loss type") as caught:
        trl_loss_of_unknown()
    listed = str(caught.value).split("[")[1].split("]")[0].replace("'", "").split(", ")
    assert set(listed) == set(TYPES) | set(COUPLED)


def trl_loss_of_unknown() -> float:
    spec = LossSpec()
    object.__setattr__(spec, "types", ("nonsense",))
    return trl_loss(spec, batch(0))


@pytest.mark.parametrize(
    ("names", "start"),
    [
        (("sigmoid",), (math.log(2), True)),
        (("hinge",), (1.0, True)),  # max(0, 1 - 0)
        (("apo_zero",), (1.0, True)),  # sigmoid(0) + sigmoid(0)
        (("sigmoid", "sft"), (math.log(2), False)),  # an NLL term comes on top
        (("kto",), (0.5, False)),  # 1 - sigmoid(0), times weights that a name does not tell
        (("ipo",), None),  # 1 / (4 beta^2)
        (("exo_pair",), None),  # depends on its smoothing
        (("simpo",), None),
        (("bco_pair",), None),
        ((), None),
    ],
)
def test_where_a_loss_of_this_name_starts(names: tuple[str, ...], start: tuple[float, bool] | None) -> None:
    found = start_of(names)
    assert found == (None if start is None else (pytest.approx(start[0]), start[1]))
