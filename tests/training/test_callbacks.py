"""Fixed prompts: when they are answered and by whom, and that asking leaves no trace in training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TrainerCallback

from dpo_diag import load_run
from dpo_diag.training import DiagDPOTrainer, FixedPromptCallback, untouched_random_state
from dpo_diag.training.answer_scores import kl_by_tag

from .tiny import arguments, make_model, make_pairs

PROMPTS = [{"id": "a", "prompt": "1 cat:"}, {"id": "b", "prompt": "2 dog dog dog:"}]


def greedy(model: Any, tokenizer: Any, prompts: Any, **_: Any) -> list[dict[str, Any]]:
    """A rude generate function: left padding, sampling from the global random state, the model left in train mode."""
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    batch = tokenizer([p["prompt"] for p in prompts], return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=True)
    torch.rand(7), np.random.rand(7), random.random()  # noqa: NPY002
    model.train()
    model.config.use_cache = False
    new = out[:, batch["input_ids"].shape[1] :]
    return [
        {"prompt_id": p["id"], "sample": 0, "text": tokenizer.decode(t), "token_ids": t.tolist(), "unknown": 1}
        for p, t in zip(prompts, new, strict=True)
    ]


def alone(model: Any, tokenizer: Any) -> list[list[int]]:
    """Greedy answers one prompt at a time, from logits."""
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt["prompt"])["input_ids"]
        start = len(ids)
        for _ in range(3):
            with torch.no_grad():
                ids = [*ids, int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        found.append(ids[start:])
    return found


def trainer_of(folder: Path, tokenizer: Any, callbacks: Any = (), **options: Any) -> DiagDPOTrainer:
    known = {"model": make_model(1, attention_dropout=0.2), "ref_model": make_model(2), "recorder": folder / "run"}
    extra = {k: options.pop(k) for k in ("model", "ref_model", "recorder", "peft_config", "stop_on") if k in options}
    return DiagDPOTrainer(
        **(known | extra), processing_class=tokenizer, callbacks=list(callbacks),
        args=arguments(
            folder / "out",
            **({"eval_strategy": "steps", "eval_steps": 2, "max_steps": 5, "disable_dropout": False} | options),
        ),
        train_dataset=Dataset.from_list(make_pairs(11)),
        eval_dataset={"x": Dataset.from_list(make_pairs(3)), "y": Dataset.from_list(make_pairs(3, seed=4))},
    )  # fmt: skip


def test_answers_and_no_trace(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """With attention dropout every loss depends on the random state: with and without the callback (and the records)
    they are the same to the last bit. Answers are those of the weights at that step."""
    seen: list[list[list[int]]] = []

    class Look(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            with untouched_random_state():
                seen.append(alone(model, tokenizer))

    side = tokenizer.padding_side, tokenizer.truncation_side
    scores = []

    def score(rows: Any) -> dict[tuple[str, str], tuple[float, float]]:
        scores.append(len(rows))
        if len(scores) == 3:
            raise ZeroDivisionError("an odd answer")
        return {("held_out", "execution_accuracy"): (0.25 * len(scores), float(len(rows)))}

    callback = FixedPromptCallback(greedy, PROMPTS, score_fn=score)
    policy, reference = make_model(1, attention_dropout=0.2), make_model(2)
    expected_reference, expected_start = alone(reference, tokenizer), alone(policy, tokenizer)
    asked = trainer_of(tmp_path / "a", tokenizer, [callback, Look()], model=policy, ref_model=reference)
    asked.train()
    silent = trainer_of(tmp_path / "b", tokenizer, recorder=None)
    silent.train()
    pick = ("loss", "grad_norm", "eval_x_loss")
    a = [{k: r[k] for k in pick if k in r} for r in asked.state.log_history if r["step"] > 0 and set(pick) & set(r)]
    b = [{k: r[k] for k in pick if k in r} for r in silent.state.log_history if set(pick) & set(r)]
    assert a == b
    assert len(a) == 8  # five losses, evaluations at 2, 4 and 5
    assert (tokenizer.padding_side, tokenizer.truncation_side) == side
    assert policy.config.use_cache == silent.model.config.use_cache

    outputs = load_run(tmp_path / "a" / "run").outputs
    assert outputs.groupby("model")["step"].unique().map(list).to_dict() == {"policy": [0, 2, 4, 5], "ref": [0]}
    answers = {k: list(map(list, f["token_ids"])) for k, f in outputs.groupby(["model", "step"])}
    assert answers["ref", 0] == expected_reference
    assert answers["policy", 0] == expected_start == seen[0]
    assert answers["policy", 4] == seen[-1]
    history = load_run(tmp_path / "a" / "run").history
    rows = history[history["name"] == "score/execution_accuracy"]
    assert rows[["step", "split", "value", "weight"]].values.tolist() == [
        [0, "held_out", 0.25, 2.0], [2, "held_out", 0.5, 2.0], [5, "held_out", 1.0, 2.0],
    ]  # fmt: skip


@pytest.mark.slow
def test_kl_leaves_no_trace(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: Any) -> None:
    """With attention dropout: losses and gradients are the same to the last bit with and without it. Its last value is
    that of the weights at the end, the reference the other model or the adapter switched off, where it starts at 0.
    Where neither is kept there is none, and one line."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.3)
    for name, options in (("model", {}), ("adapter", {"ref_model": None, "peft_config": lora, "learning_rate": 0.3})):
        logs = []
        for kl in (kl_by_tag, None):
            callback = FixedPromptCallback(greedy, PROMPTS, kl_fn=kl)
            folder = tmp_path / name / str(len(logs))
            trainer = trainer_of(folder, tokenizer, [callback], model=make_model(1, attention_dropout=0.2), **options)
            trainer.train()
            logs.append([(r["loss"], r["grad_norm"]) for r in trainer.state.log_history if "loss" in r])
            history = load_run(folder / "run").history
            rows = history[history["name"] == "kl/answers"]
            if kl is None:
                assert rows.empty
                continue
            assert rows[["step", "split", "weight"]].values.tolist() == [[s, "prompts", 6] for s in (0, 2, 4, 5)]
            assert (rows["value"].iloc[0] == 0) == (name == "adapter") and rows["value"].iloc[-1] > 1e-4
            last = kl_by_tag(trainer.model, trainer.ref_model, tokenizer, PROMPTS, callback.rows["policy", 5])
            assert last["prompts", "answers"] == (pytest.approx(rows["value"].iloc[-1], rel=1e-6), 6)
        assert logs[0] == logs[1] and len(logs[0]) == 5
    callback = FixedPromptCallback(greedy, PROMPTS, kl_fn=kl_by_tag)
    folder = tmp_path / "none"
    trainer_of(folder, tokenizer, [callback], ref_model=None, precompute_ref_log_probs=True).train()
    assert not (load_run(folder / "run").history["name"] == "kl/answers").any()
    said = "KL from the reference on the answers: not applicable, the trainer holds no reference model"
    assert sum(said in record.getMessage() for record in caplog.records) == 1


@pytest.mark.slow
def test_trackers_hear_of_scores_and_trls_averages_stay(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    heard = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            heard.append((state.global_step, {k for k in logs if "score/" in k}))

    callback = FixedPromptCallback(
        greedy, PROMPTS, schedule=(3,), with_reference=False, score_fn=lambda rows: {("eval_x", "n"): (2.0, 2.0)}
    )
    trainer = trainer_of(tmp_path, tokenizer, [callback, Tracker()], max_steps=4, logging_steps=4)
    trainer.train()
    assert (3, {"eval_x_score/n"}) in heard
    logged = next(r for r in trainer.state.log_history if "loss" in r)
    assert logged["loss_exact"] == pytest.approx(logged["loss"], abs=0.05)
    rows = load_run(tmp_path / "run").history
    assert rows.loc[(rows["split"] == "train") & (rows["name"] == "ce/chosen"), "weight"].tolist() == [11.0]


@pytest.mark.slow
def test_lora_answers_with_the_adapter_off(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    base = make_model(1)
    expected = alone(base, tokenizer)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    callback = FixedPromptCallback(greedy, PROMPTS)
    trainer = trainer_of(
        tmp_path, tokenizer, [callback], model=base, ref_model=None, peft_config=lora, learning_rate=0.3, max_steps=3
    )
    trainer.train()
    assert [r["token_ids"] for r in callback.rows["ref", 0]] == expected
    assert [r["token_ids"] for r in callback.rows["policy", 3]] == alone(trainer.model, tokenizer) != expected


@pytest.mark.slow
def test_precomputed_reference_answers_before_the_first_step(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = make_model(1)
    expected = alone(policy, tokenizer)
    callback = FixedPromptCallback(greedy, PROMPTS, schedule=("end",))
    trainer_of(
        tmp_path, tokenizer, [callback], model=policy, ref_model=None, precompute_ref_log_probs=True, max_steps=1
    ).train()
    assert [r["token_ids"] for r in callback.rows["ref", 0]] == expected
    assert set(callback.rows) == {("ref", 0), ("policy", 1)}


def test_guards_say_what_the_log_hides(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A pair whose weights give NaN: TRL's log shows a finite loss, the alert names step and pairs. Training goes on
    unless it was asked to stop."""

    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.norm.weight.fill_(float("nan"))

    for stop_on, last in (((), 5), (("non_finite_loss",), 3)):
        folder = tmp_path / str(last)
        trainer = trainer_of(folder, tokenizer, [Break()], stop_on=stop_on, eval_strategy="no")
        trainer.train()
        assert trainer.state.global_step == last
        alerts = load_run(folder / "run").alerts
        first = alerts.iloc[0]
        assert (first["code"], first["step"]) == ("non_finite_loss", 3)
        assert "3 of 3 rows" in first["message"]
        assert len(alerts) == last - 2
        row = next(r for r in trainer.state.log_history if r.get("step") == 3 and "loss" in r)
        assert np.isnan(row["loss"]) and np.isfinite(row["trl/loss"])  # transformers puts an earlier mean in its place
