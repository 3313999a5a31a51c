"""Losses that TRL's DPO trainer lacks: values by hand, TRL's experimental trainers where they have the same loss, and
the gradient that training takes against the formula's own."""

from __future__ import annotations

import math
import os
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.losses import LOSSES, NUMPY, LossSpec, loss_at_reference, loss_floor, loss_turn, pair_losses, start_of
from tests.test_losses import LENGTHS, batch, stub_of

OURS = tuple(name for name, loss in LOSSES.items() if not loss.in_trl)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def value(kind: str, a: float = 0.0, b: float = 0.0, beta: float = 0.5, **known: Any) -> float:
    """Of one pair; the sums and counts by keyword."""
    coefficients = known.pop("coefficients", {})
    known = {name: [number] for name, number in known.items()}
    return float(pair_losses(LossSpec(types=(kind,), beta=beta, coefficients=coefficients), [a], [b], **known)[0])


def test_losses_against_displacement_by_hand() -> None:
    """beta 0.5, a = -1, b = -3, so that chosen lies 1 nat below its reference.

    dpop, lambda 2: 0.5 [-1 + 3 - 2 * 1] = 0, so ln 2; at a = +1 there is no penalty: 0.5 [1 + 3] = 2.
    dpop_outside, lambda 1: 0.5 * 2 - 1 * 1 = 0, the same as lambda 2 inside beta 0.5.
    cal_dpo: -log sigmoid(2) + (-1 - 1)^2 + (-3 + 1)^2 = .126928 + 8, half of the squares with weight 0.5.
    dpo_shift, lambda 0.5: 0.5 [-1 + 1.5] = 0.25.
    epsilon_dpo with a beta of the pair's own, 0.25: 0.25 [-1 + 3] = 0.5.
    bdpo, lambda 0.5: log(0.5 e^-3 + 0.5) = log(0.5 * 1.0497871) = -0.644560; 0.5 [-1 + 0.644560] = -0.177720.
    """
    assert value("dpop", -1, -3, coefficients={"dpop_lambda": 2}) == pytest.approx(math.log(2), abs=1e-12)
    assert value("dpop", 1, -3, coefficients={"dpop_lambda": 2}) == pytest.approx(-log_sigmoid(2), abs=1e-12)
    outside = value("dpop_outside", -1, -3, coefficients={"dpop_outside_lambda": 1})
    assert outside == pytest.approx(math.log(2), abs=1e-12)
    assert value("cal_dpo", -1, -3) == pytest.approx(-log_sigmoid(2) + 8, abs=1e-12)
    half = value("cal_dpo", -1, -3, coefficients={"cal_dpo_weight": 0.5})
    assert half == pytest.approx(-log_sigmoid(2) + 4, abs=1e-12)
    shifted = value("dpo_shift", -1, -3, coefficients={"dpo_shift_lambda": 0.5})
    assert shifted == pytest.approx(-log_sigmoid(0.25), abs=1e-12)
    own = pair_losses(LossSpec(types=("epsilon_dpo",), beta=0.5), [-1], [-3], beta=[0.25])
    assert own.tolist() == pytest.approx([-log_sigmoid(0.5)], abs=1e-12)
    with pytest.raises(DiagError, match="beta is not known"):
        value("epsilon_dpo", -1, -3)
    assert value("bdpo", -1, -3) == pytest.approx(-log_sigmoid(-0.177720), abs=1e-6)


def test_bounded_dpo_gains_nothing_from_a_rejected_that_is_gone() -> None:
    """As b falls the mixture ends at log(1 - lambda): with lambda 0.75 at log 0.25, so that at a = 0 and beta 1 the
    loss ends at -log sigmoid(log 4) = log(1 + 1/4); DPO's goes on to 0."""
    ends = [value("bdpo", 0, b, beta=1, coefficients={"bdpo_lambda": 0.75}) for b in (-50, -500)]
    assert ends == pytest.approx([math.log(1.25)] * 2, abs=1e-12)
    assert value("sigmoid", 0, -500, beta=1) < 1e-200


def test_losses_without_a_reference_by_hand() -> None:
    """Chosen: -2 nats over 4 tokens, rejected -6 over 3, so -0.5 and -2 per token.

    simpo, beta 2, gamma 1: 2 * 1.5 - 1 = 2. cpo, beta 0.5: 0.5 * 4 = 2.
    orpo, beta 0.5: log odds -0.5 - log(1 - e^-0.5) = -0.5 + 0.932752 = 0.432752 and -2 + 0.145414 = -1.854586: their
    difference is 2.287338. a and b play no part.
    """
    sums = {"chosen_sum_logp": -2.0, "rejected_sum_logp": -6.0, "n_chosen": 4, "n_rejected": 3}
    assert value("simpo", 7, 8, beta=2, **sums) == pytest.approx(-log_sigmoid(2), abs=1e-12)
    assert value("cpo", 7, 8, **sums) == pytest.approx(-log_sigmoid(2), abs=1e-12)
    assert value("orpo", 7, 8, **sums) == pytest.approx(-0.5 * log_sigmoid(2.287338), abs=1e-6)
    assert math.isnan(loss_at_reference(LossSpec(types=("simpo",))))
    assert loss_at_reference(LossSpec(types=("simpo", "sigmoid"))) == pytest.approx(math.log(2))
    with pytest.raises(DiagError, match="rejected_sum_logp is not known"):
        value("cpo", chosen_sum_logp=-2.0)


def test_the_nll_term_in_three_normalisations() -> None:
    """Two answers of 10 and 30 tokens with 20 and 30 nats: 50 / 40 over the batch's tokens, (2 + 1) / 2 per sequence,
    25 summed; per pair 20 * 2 / 40 = 1 and 1.5 for the first."""
    known = {"chosen_sum_logp": [-20.0, -30.0], "n_chosen": [10, 30]}
    found = {
        k: pair_losses(LossSpec(types=(k,)), [0, 0], [0, 0], **known) for k in ("sft", "sft_per_sequence", "sft_sum")
    }
    assert {k: v.tolist() for k, v in found.items()} == {
        "sft": [1.0, 1.5], "sft_per_sequence": [2.0, 1.0], "sft_sum": [20.0, 30.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "coefficients"),
    [("dpop", {"dpop_lambda": 0}), ("dpop_outside", {"dpop_outside_lambda": 0}), ("dpo_shift", {"dpo_shift_lambda": 1}),
     ("bdpo", {"bdpo_lambda": 1 - 1e-12})],
)  # fmt: skip
def test_at_the_end_of_its_coefficient_each_is_dpo(kind: str, coefficients: dict[str, float]) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(0, 5, (2, 50))
    expected = pair_losses(LossSpec(beta=0.3), a, b)
    found = pair_losses(LossSpec(types=(kind,), beta=0.3, coefficients=coefficients), a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_where_they_start_and_end() -> None:
    """With a = b = 0 all but cal_dpo are ln 2; that one adds 2 / (2 beta)^2 = 50 at beta 0.1. cDPO with smoothing 0.1
    cannot fall below the entropy of (0.9, 0.1): 0.325083 nats."""
    for kind in ("dpop", "dpop_outside", "dpo_shift", "bdpo", "epsilon_dpo"):
        assert start_of((kind,)) == (pytest.approx(math.log(2)), True)
        assert loss_floor(LossSpec(types=(kind,))) == 0.0
    assert start_of(("cal_dpo",)) is None
    assert loss_at_reference(LossSpec(types=("cal_dpo",))) == pytest.approx(math.log(2) + 50)
    assert start_of(("dpop", "sft_sum")) == (pytest.approx(math.log(2)), False)
    smoothed = LossSpec(types=("cdpo",), label_smoothing=0.1)
    assert loss_floor(smoothed) == pytest.approx(0.325083, abs=1e-6)
    ratios = np.linspace(0, 100, 100001)
    found = pair_losses(smoothed, ratios, np.zeros(100001))
    assert found.min() == pytest.approx(0.325083, abs=1e-6)
    assert loss_turn(smoothed) == pytest.approx(math.log(9)) == pytest.approx(0.1 * ratios[found.argmin()], abs=1e-3)
    for other in (LossSpec(), LossSpec(types=("cdpo",)), LossSpec(types=("cdpo", "sft"), label_smoothing=0.1)):
        assert loss_turn(other) is None


def test_smoothing_without_a_reference() -> None:
    """cpo, beta 0.5, log-probs -2 and -6: x = 2; with smoothing 0.1 .9 * .126928 + .1 * 2.126928 = .326928, above the
    entropy .325083 that both kinds keep as their floor. simpo by the same x: beta 2, 2 * 1.5 - 1."""
    sums = {"chosen_sum_logp": [-2.0], "rejected_sum_logp": [-6.0], "n_chosen": [4], "n_rejected": [3]}
    for kind, beta in (("cpo", 0.5), ("simpo", 2.0)):
        spec = LossSpec(types=(kind,), beta=beta, label_smoothing=0.1)
        assert float(pair_losses(spec, [0], [0], **sums)[0]) == pytest.approx(0.326928, abs=1e-6)
        assert loss_floor(spec) == pytest.approx(0.325083, abs=1e-6)


def test_log1mexp_keeps_its_digits() -> None:
    """log(1 - e^-1e-20) = log 1e-20 and log(1 - e^-50) = -e^-50, where the plain formula gives -inf and 0."""
    found = NUMPY.log1mexp(np.array([-1e-20, -50.0, -math.log(2)]))
    np.testing.assert_allclose(found, [math.log(1e-20), -math.exp(-50), -math.log(2)], rtol=1e-12)


@pytest.mark.slow  # its import alone takes seconds
def test_cpo_simpo_and_orpo_are_trls(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's experimental trainers hand summed log-probs to CPO's sigmoid and means to SimPO and ORPO."""
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    draw = np.random.default_rng(3)
    n = draw.integers(1, 30, (2, 40))
    sums = -draw.exponential(1.0, (2, 40)) * n
    means = sums / n
    trainer = SimpleNamespace(
        alpha=0.0, beta=0.7, label_smoothing=0.0, simpo_gamma=0.4, accelerator=SimpleNamespace(device="cpu")
    )
    known = {"chosen_sum_logp": sums[0], "rejected_sum_logp": sums[1], "n_chosen": n[0], "n_rejected": n[1]}
    kinds = (("cpo", "sigmoid", sums), ("simpo", "simpo", means))
    for (kind, loss_type, given), smoothing in product(kinds, (0.0, 0.2)):
        trainer.loss_type, trainer.label_smoothing = loss_type, smoothing
        expected = CPOTrainer.cpo_loss(trainer, *torch.from_numpy(given))[0].numpy()
        own = {"simpo_gamma": 0.4} if kind == "simpo" else {}
        spec = LossSpec(types=(kind,), beta=0.7, label_smoothing=smoothing, coefficients=own)
        np.testing.assert_allclose(pair_losses(spec, 0 * n[0], 0 * n[1], **known), expected, rtol=1e-12)
    expected = -ORPOTrainer.odds_ratio_loss(trainer, *torch.from_numpy(means))[0].numpy()
    found = pair_losses(LossSpec(types=("orpo",), beta=0.7), 0 * n[0], 0 * n[1], **known)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # TRL computes it in float32


@pytest.mark.parametrize("kind", OURS)
def test_training_takes_the_formulas_gradient(kind: str) -> None:
    """What autograd gives through TRL's forward for every response token is the formula's own central difference:
    a token's log-prob enters through its response's sum alone."""

    import torch

    from dpo_diag.training import trl_adapter

    spec = LossSpec(types=(kind,), beta=0.3, label_smoothing=0.1 if LOSSES[kind].smooths else 0.0)
    data = {k: v.double() if v.is_floating_point() else v for k, v in batch(11).items()}
    data["logp"].requires_grad_()
    trainer, model, inputs = stub_of(spec, data)
    beta = torch.tensor([0.3, 0.2, 0.4, 0.1], dtype=torch.float64)
    tap = SimpleNamespace(
        policy=model(), reference=trainer.ref_model() if spec.needs_reference else None, pair_beta=beta
    )
    loss = trl_adapter.added_loss(trainer, tap, inputs, spec)
    loss.backward()
    found = data["logp"].grad.numpy()

    mask = data["mask"][:, 1:].numpy().astype(bool)
    sums = {k: (data[k].detach().numpy() * mask).sum(1) for k in ("logp", "ref")}

    def mean_loss(logp: np.ndarray) -> float:
        (a, b), (chosen, rejected) = (logp - sums["ref"]).reshape(2, 4), logp.reshape(2, 4)
        known = {"chosen_sum_logp": chosen, "rejected_sum_logp": rejected, "beta": beta.numpy()}
        return float(pair_losses(spec, a, b, n_chosen=LENGTHS[0], n_rejected=LENGTHS[1], **known).mean())

    assert float(loss.detach()) == pytest.approx(mean_loss(sums["logp"]), rel=1e-12)
    step = 1e-6
    for row in range(8):
        nudge = step * (np.arange(8) == row)
        slope = (mean_loss(sums["logp"] + nudge) - mean_loss(sums["logp"] - nudge)) / (2 * step)
        np.testing.assert_allclose(found[row][mask[row]], slope, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"types": ("dpop",), "coefficients": {"dpop_lamda": 5}}, "did you mean dpop_lambda"),
        ({"coefficients": {"dpop_lambda": 5}}, "none: sigmoid has none"),
        ({"types": ("bdpo",), "coefficients": {"bdpo_lambda": 1}}, "0 to 1, both excluded"),
        ({"types": ("dpo_shift",), "coefficients": {"dpo_shift_lambda": 1.5}}, "0 to 1"),
        ({"types": ("dpop",), "coefficients": {"dpop_lambda": -1}}, "at least 0"),
        ({"label_smoothing": 0.1}, "sigmoid would not use it"),
        ({"types": ("simpo",), "ld_alpha": 0.5}, "simpo has no log-ratios"),
        ({"types": ("epsilon_dpo",), "ld_alpha": 0.5}, "from its whole sums"),
        ({"types": ("epsilon_dpo",), "coefficients": {"epsilon": 1}}, "0 to 1, both excluded"),
        ({"types": ("cpo", "sft"), "f_divergence_type": "forward_kl"}, "no log-ratios"),
    ],
)
def test_what_no_training_may_have_ends_in_one_line(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(DiagError, match=said):
        LossSpec(**spec).check_trainable()


def test_every_option_of_the_loss_group_can_train() -> None:
    """Each names its kinds and lists their coefficients at their defaults, and each kind has an option."""
    import yaml

    from dpo_diag.config import conf_dir

    files = sorted((conf_dir() / "loss").glob("*.yaml"))
    specs = {f.stem: LossSpec(**yaml.safe_load(f.read_text(encoding="utf-8"))) for f in files}
    for name, spec in specs.items():
        spec.check_trainable()
        defaults = {c: own.default for kind in spec.types for c, own in LOSSES[kind].coefficients.items()}
        assert spec.coefficients == defaults, name
    assert {kind for spec in specs.values() for kind in spec.types} == set(LOSSES)
