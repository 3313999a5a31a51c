"""Coefficients that move: by hand, in a training that records each step's own, and through a resume."""

from __future__ import annotations

import math
from pathlib import Path as Folder
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback

from dpo_diag import load_run
from dpo_diag.config import Config, TrainerConfig
from dpo_diag.config_schedule import ScheduleConfig, check_schedule
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.schedule import CoefficientSchedule, Path, Steering, schedule_of

from .tiny import arguments, make_model, make_pairs


class End(TrainerCallback):
    """Ctrl-C in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_of(folder: Folder, tokenizer: Any, callbacks: list[Any], **options: Any) -> DiagDPOTrainer:
    known = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "eval_strategy": "steps", "eval_steps": 2}
    return DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(1, noise=0.05), processing_class=tokenizer, recorder=folder / "run",
        args=arguments(folder / "out", **(known | options)), callbacks=callbacks,
        train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(10, seed=1)),
    )  # fmt: skip


def rows(run: Any, split: str, name: str) -> dict[int, float]:
    history = run.history.query("split == @split and name == @name")
    return dict(zip(history["step"].tolist(), history["value"].tolist(), strict=True))


def test_the_rules_by_hand() -> None:
    """A line from 2 to 0 over half of 8 steps; half a cosine: 1 + cos(pi/4) = 1.707107 after one of four. Steering
    by 3 and 0.5 around a bound of 1, between 0.3 and 10: 1 -> 3 -> 9 -> 10 -> 5 -> 2.5, NaN keeps, 0.4 -> 0.3."""
    assert [Path(2.0, 0.0, over=0.5).at(step, 8) for step in (0, 1, 2, 4, 8)] == [2.0, 1.5, 1.0, 0.0, 0.0]
    cosine = Path(2.0, 0.0, shape="cosine")
    assert [cosine.at(step, 4) for step in (0, 1, 2, 4)] == pytest.approx([2.0, 1.707107, 1.0, 0.0], abs=1e-6)
    steering, value, found = Steering(1.0, raise_by=3.0, lower_by=0.5, least=0.3, most=10.0), 1.0, []
    for measured in (1.1, 5.0, 1.01, 1.0, 0.2, math.nan):
        found.append(value := steering.after(value, measured))
    assert found == [3.0, 9.0, 10.0, 5.0, 2.5, 2.5]
    assert steering.after(0.4, 0.0) == 0.3


def test_coefficients_by_name() -> None:
    spec = LossSpec(types=("dpo_shift", "sft"), weights=(1.0, 0.2), beta=0.3)
    assert [spec.value_of(name) for name in ("beta", "sft", "dpo_shift_lambda")] == [0.3, 0.2, 0.75]
    assert spec.with_value("dpo_shift_lambda", 0.5).coefficients == {"dpo_shift_lambda": 0.5}
    assert spec.with_value("beta", 1.0) == LossSpec(types=spec.types, weights=spec.weights, beta=1.0)
    assert spec.with_value("sft", 2.0).weights == (1.0, 2.0) and spec.weights == (1.0, 0.2)
    with pytest.raises(DiagError, match=r"no such coefficient.*sft_sum.*one of beta, dpo_shift, sft, dpo_shift_lambda"):
        spec.value_of("sft_sum")


@pytest.mark.slow
def test_a_run_splits_with_the_coefficients_of_each_step(tmp_path: Folder, tokenizer: PreTrainedTokenizerFast) -> None:
    """The NLL weight on a line from 0.5 to 2.5 over 4 steps, 0.5 more a step. What is recorded is exact, and explain's
    change is the logged one: the sides' parts and the coefficient's own, 1/2 [2.0 - 0.5] [nll_0 + nll_4], as the weight
    at step 4's evaluation is that of step 4, 2.0, and nll is the mean over the set's tokens, the log of ppl_token."""
    own = CoefficientSchedule("sft", Path(0.5, 2.5))
    trainer_of(tmp_path, tokenizer, [own]).train()
    run = load_run(tmp_path / "run")
    assert rows(run, "train", "coefficient/sft") == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}
    assert rows(run, "eval", "coefficient/sft") == {0: 0.5, 2: 1.0, 4: 2.0}
    assert run.history.query("name == 'loss_residual'")["value"].max() < 1e-5
    assert run.info.loss == LossSpec(types=("sigmoid", "sft"), weights=(1.0, 0.5))
    loss = explain(run, from_step=0)["loss"]
    logged = rows(run, "eval", "loss")
    assert (loss["from"], loss["to"]) == pytest.approx((logged[0], logged[4]), abs=1e-9)
    assert loss["coefficients"] == {"sft": [0.5, 2.0]} and loss["max_pair_residual"] < 1e-12
    nll = [math.log(rows(run, "eval", "ppl_token/chosen")[step]) for step in (0, 4)]
    assert loss["coefficient_part"] == pytest.approx(0.75 * sum(nll), abs=1e-6)
    parts = loss["chosen_part"] + loss["rejected_part"] + loss["coefficient_part"]
    assert parts == pytest.approx(logged[4] - logged[0], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("measured", "logging"), [("ce/chosen", 1), ("eval_ce/chosen", 3)])
def test_a_resumed_steering_goes_on(
    tmp_path: Folder, tokenizer: PreTrainedTokenizerFast, measured: str, logging: int
) -> None:
    """Ctrl-C in step 7, the checkpoint of step 4 resumed: weights and losses are those of the run that was not ended.
    With a log every 3 steps that checkpoint, and the evaluation at it, lie inside a window and count behind it."""

    def train(folder: Folder, callbacks: list[Any], resume: bool = False) -> None:
        bound = 7.2 if measured == "ce/chosen" else 6.9
        steering = CoefficientSchedule("sft", Steering(bound, raise_by=1.5, lower_by=0.5), measured)
        trainer = trainer_of(
            folder, tokenizer, [steering, *callbacks], max_steps=9, logging_steps=logging, save_strategy="steps",
            save_steps=4, logging_first_step=False,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume or None)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a", [End(7)])
    train(tmp_path / "a", [], resume=True)
    train(tmp_path / "b", [])
    ended, whole = (load_run(tmp_path / name / "run") for name in "ab")
    names = ["coefficient/sft", "loss", "ce/chosen"]
    both = [run.history[run.history["name"].isin(names)] for run in (ended, whole)]
    key = ["step", "split", "name"]
    one, two = (frame.sort_values(key)[[*key, "value"]].reset_index(drop=True) for frame in both)
    pd.testing.assert_frame_equal(one, two, rtol=1e-6)
    moved = rows(whole, "train", "coefficient/sft")
    assert list(moved) == [*range(logging, 10, logging)] and len(set(moved.values())) > 1
    assert whole.history.query("name == 'loss_residual'")["value"].max() < 1e-5


@pytest.mark.parametrize(
    ("schedule", "loss", "said"),
    [
        ({"kind": "sine"}, {}, "schedule.kind"),
        ({"kind": "linear", "of": "beta"}, {}, "schedule.end.*the last value of beta"),
        ({"kind": "linear", "of": "beta", "end": 0.0}, {}, "loss.beta"),
        ({"kind": "cosine", "of": "beta", "end": 1.0, "over": 0.0}, {}, "schedule.over"),
        ({"kind": "steered"}, {}, "no such coefficient.*sft"),
        ({"kind": "steered"}, {"types": ("sigmoid", "sft")}, "schedule.bound"),
        ({"kind": "steered", "bound": 1.0, "least": 2.0}, {"types": ("sigmoid", "sft")}, "schedule.least"),
        ({"kind": "steered", "bound": 1.0, "raise_by": 0.5}, {"types": ("sigmoid", "sft")}, "schedule.raise_by"),
        (
            {"kind": "linear", "of": "dpo_shift_lambda", "end": 1.5}, {"types": ("dpo_shift",)},
            "dpo_shift_lambda.*0 to 1",
        ),
    ],
)  # fmt: skip
def test_what_no_schedule_may_be(schedule: dict[str, Any], loss: dict[str, Any], said: str) -> None:
    with pytest.raises(DiagError, match=said):
        check_schedule(Config(schedule=ScheduleConfig(**schedule), loss=LossSpec(**loss)))


def test_a_configuration_makes_its_callback() -> None:
    config = Config(
        loss=LossSpec(types=("sigmoid", "sft"), weights=(1.0, 0.1)), schedule=ScheduleConfig(kind="steered", bound=0.3)
    )
    check_schedule(config)
    made = schedule_of(config)
    assert (made.of, made.rule, made.measured) == ("sft", Steering(0.3), "ce/chosen")
    config.schedule = ScheduleConfig(kind="cosine", of="beta", end=1.0)
    check_schedule(config)
    assert schedule_of(config).rule == Path(0.1, 1.0, 1.0, "cosine")
    config.trainer = TrainerConfig(method="sft")
    with pytest.raises(DiagError, match="sft has no loss with coefficients"):
        check_schedule(config)
