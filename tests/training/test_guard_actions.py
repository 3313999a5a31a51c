"""What is done where a guard speaks, in real trainings of a tiny model: an injected spike, an injected NaN."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TrainerCallback

from dpo_diag import load_run
from dpo_diag.config_guards import GuardsConfig
from dpo_diag.config_keep import KeepConfig
from dpo_diag.errors import DiagError
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.checkpoint_folders import checkpoints_in
from dpo_diag.training.early_stopping import EarlyStopping
from dpo_diag.training.guarded import drop_gradients
from dpo_diag.training.replay import replay

from .tiny import arguments, make_model, make_pairs

Weights = dict[str, torch.Tensor]


class Injected(DiagDPOTrainer):
    """The loss of micro-batches is multiplied: {(step, which of its micro-batches): factor}."""

    factors: dict[tuple[int, int], float] = {}  # noqa: RUF012
    seen: tuple[int, int] = (0, 0)

    def _trls_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._trls_loss(model, inputs, return_outputs)
        step = self.state.global_step + 1
        self.seen = (step, self.seen[1] + 1 if self.seen[0] == step else 0)
        return loss * self.factors.get(self.seen, 1.0)


class Look(TrainerCallback):
    """Weights and optimizer state around each update, the rates of it, and the pairs of each step."""

    def __init__(self) -> None:
        self.before: dict[int, tuple[Weights, Any]] = {}
        self.after: dict[int, tuple[Weights, Any]] = {}
        self.rates: dict[int, float] = {}

    @staticmethod
    def _state(model: Any, optimizer: Any) -> tuple[Weights, Any]:
        return {k: v.clone() for k, v in model.state_dict().items()}, copy.deepcopy(optimizer.state_dict()["state"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.before[state.global_step + 1] = self._state(kw["model"], kw["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.rates[state.global_step + 1] = kw["optimizer"].param_groups[0]["lr"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.after[state.global_step] = self._state(kw["model"], kw["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.after[state.global_step] = self._state(kw["model"], kw["optimizer"])


def same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN like NaN."""
    if torch.is_tensor(a):
        return a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def trained(
    folder: Path, tokenizer: PreTrainedTokenizerFast, factors: dict[tuple[int, int], float],
    actions: dict[str, str] | None = None, guards: dict[str, Any] | None = None, **options: Any,
) -> tuple[Injected, Look]:  # fmt: skip
    look = Look()
    trainer = Injected(
        model=make_model(1), ref_model=make_model(2), recorder=folder / "run", processing_class=tokenizer,
        callbacks=[look], train_dataset=Dataset.from_list(make_pairs(30)),
        thresholds={"guards": {"spike_least_steps": 3, "spike_min": 3.0}},
        args=arguments(folder / "out", **({"max_steps": 8, "weight_decay": 0.1} | options)),
    )  # fmt: skip
    trainer.factors = factors
    trainer.answer_guards(GuardsConfig(actions=actions or {}, **(guards or {})))
    trainer.train()
    return trainer, look


def alerts_of(folder: Path) -> list[tuple[int, str]]:
    alerts = load_run(folder / "run").alerts
    return [(int(row["step"]), str(row["code"])) for _, row in alerts.iterrows() if row["code"] != "grad_spike"]


def ids_by_step(folder: Path) -> dict[int, set[str]]:
    pairs = load_run(folder / "run").read("pairs", ["step", "pair_id", "split"], splits=["train"])
    return {int(str(step)): set(of["pair_id"]) for step, of in pairs.groupby("step")}


def test_a_skipped_step_leaves_weights_and_optimizer_state_bit_for_bit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """AdamW with weight decay, accumulation over two micro-batches, clipping: the second micro-batch of step 5 is NaN.
    The step is left out, with its weight decay, its moments and their step count; the next one is not."""
    trainer, look = trained(
        tmp_path, tokenizer, {(5, 1): float("nan")}, {"non_finite_loss": "skip"}, max_steps=6,
        gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip
    assert alerts_of(tmp_path) == [(5, "non_finite_loss")]
    assert look.before[5][1]  # there are moments to leave alone
    assert same(look.before[5], look.after[5])
    for step in (4, 6):
        assert not same(look.before[step][0], look.after[step][0])
        assert not same(look.before[step][1], look.after[step][1])
    assert all(torch.isfinite(v).all() for v in look.after[6][0].values())
    row = load_run(tmp_path / "run").alerts.iloc[0]
    assert "guards.actions: skip" in row["message"]
    assert trainer.state.global_step == 6


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_torch_fused", "rmsprop", "adagrad"])
def test_skipping_under_other_optimizers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, optim: str) -> None:
    """A spike of 50 times the loss, from the fourth step on judged by the three before."""
    more = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    _, look = trained(tmp_path, tokenizer, {(6, 0): 50.0}, {"loss_spike": "skip"}, optim=optim, **more)
    assert (6, "loss_spike") in alerts_of(tmp_path)
    assert same(look.before[6], look.after[6])
    assert not same(look.before[5][0], look.after[5][0])


@pytest.mark.slow
def test_a_spike_is_caught_at_its_step_with_its_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Warn: the update is made. The alert's pairs are those that the records say step 6 was trained on."""
    _, look = trained(tmp_path, tokenizer, {(6, 0): 50.0})
    alerts = load_run(tmp_path / "run").alerts
    [row] = [row for _, row in alerts.iterrows() if row["code"] == "loss_spike"]
    assert row["step"] == 6
    import json

    evidence = json.loads(row["evidence"])
    assert set(evidence["pair_ids"]) == ids_by_step(tmp_path)[6]
    assert len(evidence["longest"]) == len(evidence["least_likely"]) == 3
    assert "action" not in evidence
    assert not same(look.before[6][0], look.after[6][0])


@pytest.mark.slow
def test_the_rate_is_scaled_for_two_steps_and_then_the_schedules_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Linear from 8e-3 to 0 over 8 steps: step n has rate (9 - n) * 1e-3. The spike of step 5 scales steps 5 and 6."""
    _, look = trained(
        tmp_path, tokenizer, {(5, 0): 50.0}, {"loss_spike": "scale_lr"}, {"lr_factor": 0.25, "lr_steps": 2},
        learning_rate=8e-3, lr_scheduler_type="linear",
    )  # fmt: skip
    expected = {n: (9 - n) * 1e-3 * (0.25 if n in (5, 6) else 1) for n in range(1, 9)}
    assert look.rates == pytest.approx(expected, rel=1e-12)
    history = load_run(tmp_path / "run").history
    logged = history[history["name"] == "learning_rate"]
    assert dict(zip(logged["step"], logged["value"], strict=True)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_a_checkpoint_is_taken_back_and_the_data_go_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Checkpoints at 2, 4, 6, 8; the spike of step 5 brings back the weights and moments of step 4, and step 6 has the
    rate that step 5 had, 4e-3, and the data of step 6."""
    options: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 2, "learning_rate": 8e-3, "lr_scheduler_type": "linear",
    }  # fmt: skip
    _, look = trained(tmp_path / "a", tokenizer, {(5, 0): 50.0}, {"loss_spike": "restore"}, **options)
    trained(tmp_path / "b", tokenizer, {}, **options)
    assert same(look.after[5], look.after[4])
    assert look.rates[6] == pytest.approx(4e-3, rel=1e-12)
    assert ids_by_step(tmp_path / "a") == ids_by_step(tmp_path / "b")
    assert alerts_of(tmp_path / "a") == [(5, "loss_spike"), (5, "restored")]
    message = load_run(tmp_path / "a" / "run").alerts["message"].iloc[-1]
    assert "of step 4 are back after step 5 (loss_spike), restore 1 of 3" in message
    assert load_run(tmp_path / "a" / "run").info.status == "finished"


@pytest.mark.slow
def test_restoring_ends_after_so_many_times(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Every step from the fifth on is NaN: two restores, and the third asks for the end. The last weights are those of
    step 4, and so are those of the checkpoint of step 6."""
    trainer, look = trained(
        tmp_path, tokenizer, {(n, 0): float("nan") for n in range(5, 20)}, {"non_finite_loss": "restore"},
        {"max_restores": 2}, max_steps=20, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    assert trainer.state.global_step == 7
    assert same(look.after[7][0], look.after[4][0])
    assert (7, "guards_gave_up") in alerts_of(tmp_path)
    assert load_run(tmp_path / "run").info.status == "finished"
    assert [*checkpoints_in(tmp_path / "out")] == [2, 4, 6]


@pytest.mark.slow
def test_skipping_ends_after_so_many_in_a_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer, look = trained(
        tmp_path, tokenizer, {(n, 0): float("nan") for n in range(3, 20)}, {"non_finite_loss": "skip"},
        {"max_skips": 4}, max_steps=20,
    )  # fmt: skip
    assert trainer.state.global_step == 6
    assert same(look.after[6], look.after[2])
    assert load_run(tmp_path / "run").info.status == "finished"


@pytest.mark.slow
def test_stopping_leaves_the_step_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer, look = trained(tmp_path, tokenizer, {(4, 0): float("nan")}, {"non_finite_loss": "stop"})
    assert trainer.state.global_step == 4
    assert same(look.before[4], look.after[4])
    run = load_run(tmp_path / "run")
    assert run.info.status == "finished"
    assert np.isfinite(run.history.query("name == 'grad_norm'")["value"].iloc[0])


def test_what_cannot_be_done_is_refused_before_the_first_step(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DiagError, match=r"restore needs checkpoints.*trainer.save_steps=N"):
        trained(tmp_path, tokenizer, {}, {"loss_spike": "restore"})
    with pytest.raises(DiagError, match="cannot restore here: the reference moves"):
        trained(tmp_path, tokenizer, {}, {"loss_spike": "restore"}, sync_ref_model=True)
    trainer, _ = trained(tmp_path, tokenizer, {}, max_steps=1)
    trainer.answer_guards(GuardsConfig(actions={"loss_spike": "restore"}))
    trainer.args.load_best_model_at_end = True
    with pytest.raises(DiagError, match="cannot restore here: the best checkpoint"):
        trainer.refuse_actions()


def test_a_gradient_scaler_goes_on_over_a_step_that_was_left_out() -> None:
    """fp16's order: backward of the scaled loss, unscale (which clipping needs), the guards, step, update. The scaler
    calls the optimizer, which finds no gradient; its scale grows as after any finite step (every 2nd here)."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)  # type: ignore[attr-defined]
    states = []
    for step in range(3):
        scaler.scale((weight * 3).sum()).backward()
        scaler.unscale_(optimizer)
        if step == 1:
            drop_gradients(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        states.append((weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"]), scaler.get_scale()))
    assert same(states[0][:2], states[1][:2])
    assert not same(states[1][:2], states[2][:2])
    assert [scale for *_, scale in states] == [8.0, 16.0, 16.0]


@pytest.mark.slow
def test_an_evaluation_beyond_the_bound_brings_back_the_checkpoint_before(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A rate of 0.05 displaces chosen by step 2 or 4, where a checkpoint is written too: it is set aside, weights and
    optimizer are those of the checkpoint before, and after the second time the run ends."""
    look = Look()
    trainer = Injected(
        model=make_model(1), ref_model=make_model(2), recorder=tmp_path / "run", processing_class=tokenizer,
        callbacks=[look], train_dataset=Dataset.from_list(make_pairs(30)),
        eval_dataset=Dataset.from_list(make_pairs(4)),
        thresholds={"guards": {"displacement_ce": 0.5}},
        args=arguments(
            tmp_path / "out", max_steps=30, learning_rate=5e-2, save_strategy="steps", save_steps=2,
            eval_strategy="steps", eval_steps=2,
        ),
    )  # fmt: skip
    trainer.answer_guards(GuardsConfig(actions={"displacement": "restore"}, max_restores=1))
    trainer.train()
    run = load_run(tmp_path / "run")
    said = run.alerts[run.alerts["code"].isin(["displacement", "restored", "guards_gave_up"])]
    steps = said.groupby("code")["step"].first()
    assert set(steps.index) >= {"displacement", "restored"}
    if (row := said[said["code"] == "restored"].iloc[0])["message"].startswith("weights"):
        back = int(row["message"].split("of step ")[1].split()[0])
        assert back < row["step"]
        assert same(look.before[int(row["step"]) + 1][0], look.after[back][0])
        assert (tmp_path / "out" / "passed-over" / f"checkpoint-{row['step']}").is_dir()
    assert run.info.status == "finished" and trainer.state.global_step < 30


@pytest.mark.slow
def test_a_displacement_at_the_last_evaluation_is_taken_back_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """No step follows: the model that training leaves is that of step 2 of 4."""
    look = Look()
    trainer = Injected(
        model=make_model(1), ref_model=make_model(2), recorder=tmp_path / "run", processing_class=tokenizer,
        callbacks=[look], train_dataset=Dataset.from_list(make_pairs(30)),
        eval_dataset=Dataset.from_list(make_pairs(4)),
        thresholds={"guards": {"displacement_ce": 1e-6}},
        args=arguments(
            tmp_path / "out", max_steps=4, learning_rate=5e-2, save_strategy="steps", save_steps=2,
            eval_strategy="steps", eval_steps=4,
        ),
    )  # fmt: skip
    trainer.answer_guards(GuardsConfig(actions={"displacement": "restore"}))
    trainer.train()
    run = load_run(tmp_path / "run")
    restored = run.alerts[run.alerts["code"] == "restored"]
    assert restored["step"].tolist() == [4]
    assert same({k: v.clone() for k, v in trainer.model.state_dict().items()}, look.after[2][0])


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "last"), [(0.0, 6), (1e-2, 12)])
def test_a_training_ends_where_its_evaluations_gain_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rate: float, last: int
) -> None:
    """Evaluations at 0, 2, 4, ... on pairs that are trained on, by chosen's and rejected's margin, patience 3: without
    a learning rate none gains, and the third after the start, at step 6, ends it; with one each gains, to the end."""
    pairs = make_pairs(12)
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(1), recorder=tmp_path / "run", processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs), eval_dataset=Dataset.from_list(pairs),
        args=arguments(tmp_path / "out", max_steps=12, learning_rate=rate, eval_strategy="steps", eval_steps=2),
    )  # fmt: skip
    trainer.add_callback(EarlyStopping(trainer, KeepConfig(metric="rewards/margins", patience=3)))
    trainer.train()
    run = load_run(tmp_path / "run")
    assert (trainer.state.global_step, run.info.status) == (last, "finished")
    said = run.alerts[run.alerts["code"] == "early_stop"]["message"].tolist()
    assert said == ([] if rate else [
        "rewards/margins gained nothing beyond its noise in 3 evaluations since step 0 (0): the run ends at step 6"
    ])  # fmt: skip


TWO = """
import json, os, sys
sys.path.insert(0, {tests!r})
from datasets import Dataset
from transformers import TrainerCallback
from dpo_diag.config_guards import GuardsConfig
from dpo_diag.config_keep import KeepConfig
from dpo_diag.training.early_stopping import EarlyStopping
from training.test_guard_actions import Injected
from training.tiny import arguments, make_model, make_pairs, make_tokenizer

folder, batch = sys.argv[1], int(sys.argv[2])
rank = int(os.environ["RANK"])
sums = {{}}

class Sum(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        sums[state.global_step] = [float(p.detach().double().sum()) for p in model.parameters()]

trainer = Injected(
    model=make_model(1), ref_model=make_model(2), recorder=folder + "/run", processing_class=make_tokenizer(),
    train_dataset=Dataset.from_list(make_pairs(40)), callbacks=[Sum()],
    eval_dataset=Dataset.from_list(make_pairs(3, seed=1)),
    args=arguments(folder + "/out", max_steps=20, per_device_train_batch_size=batch, gradient_accumulation_steps=2,
                   weight_decay=0.1, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
                   learning_rate=1e-5,
                   accelerator_config={{"dispatch_batches": False}}),
)
trainer.add_callback(EarlyStopping(trainer, KeepConfig(metric="rewards/margins", patience=2)))
trainer.factors = {{(3, 1): float("nan")}} if rank == 1 else {{}}
trainer.answer_guards(GuardsConfig(actions={{"non_finite_loss": "skip", "loss_spike": "restore"}}))
trainer.train()
json.dump(sums, open(folder + f"/sums{{rank}}.json", "w"))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_leave_out_the_step_of_which_one_sees_the_nan(tmp_path: Path) -> None:
    """The second process's second micro-batch of step 3: both processes leave the step out, have the same weights after
    every step, and the one alert has the rows of both; the batch of each process is kept. At a rate at which three
    pairs, one of which fills the second process's batch, show no gain, both end at the second evaluation."""
    import json

    from .test_distributed import launch

    folder = tmp_path / "two"
    assert launch(folder, 2, 2, TWO).wait(timeout=300) == 0, (folder / "console.txt").read_text()[-3000:]
    first, second = (json.loads((folder / f"sums{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["3"] == first["2"] and first["2"] != first["1"] and first["4"] != first["3"]
    assert [*first] == ["1", "2", "3", "4"]
    run = load_run(folder / "run")
    assert run.info.status == "finished"
    assert run.alerts.query("code == 'early_stop'")["step"].tolist() == [4]
    alerts = run.alerts.query("code == 'non_finite_loss'")
    assert alerts["step"].tolist() == [3]
    assert "of 8 rows" in alerts["message"].iloc[0]
    kept = Path(json.loads(alerts["evidence"].iloc[0])["replay"])
    assert sorted(p.name for p in kept.iterdir()) == [
        "batch.r0.safetensors", "batch.r1.safetensors", "step.json", "weights.safetensors",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_adapter_is_restored_and_its_step_computed_again(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """LoRA: the adapter of step 4 is back, bit for bit. The replay, in which nothing is injected, gives a fiftieth of
    the recorded loss."""

    def adapted(**more: Any) -> Injected:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return Injected(
            model=make_model(1), ref_model=None, processing_class=tokenizer, peft_config=lora,
            train_dataset=Dataset.from_list(make_pairs(30)), **more,
        )  # fmt: skip

    look, options = Look(), {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    trainer = adapted(
        recorder=tmp_path / "run", callbacks=[look], args=arguments(tmp_path / "out", **options),
        thresholds={"guards": {"spike_least_steps": 3, "spike_min": 3.0}},
    )  # fmt: skip
    trainer.factors = {(5, 0): 50.0}
    trainer.answer_guards(GuardsConfig(actions={"loss_spike": "restore"}))
    trainer.train()
    assert same(look.after[5], look.after[4]) and not same(look.after[6][0], look.after[5][0])
    found = replay(adapted(args=arguments(tmp_path / "out", **options)), tmp_path / "run" / "alerts" / "step-00000005")
    assert found.exact and len(found.rows) == 3
    assert found.loss == pytest.approx(found.recorded / 50, rel=1e-6)
