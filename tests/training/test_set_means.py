"""Under TRL's names stand the means of the set, from a plain loop; TRL's own where they are others, under trl/NAME."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOTrainer, SFTConfig, SFTTrainer

from dpo_diag import load_run
from dpo_diag.records import make_pair_id
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from dpo_diag.training.tracker_callback import named

from .plain import logged_means, score, score_pairs
from .test_exactness import run_of
from .tiny import arguments, make_model, make_pairs


def history_at(run: Any, split: str, step: int) -> dict[str, float]:
    rows = run.history
    rows = rows[(rows["split"] == split) & (rows["step"] == step)]
    return dict(zip(rows["name"].astype(str), rows["value"].astype(float), strict=True))


def assert_means(found: dict[str, float], expected: dict[str, float], prefix: str = "") -> None:
    assert {k: found.get(prefix + k) for k in expected} == pytest.approx(expected, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_evaluation_set_of_a_dict(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, batch: int) -> None:
    """Five pairs, and three of which one stands twice, in batches of 1, of 2 and a half one, of 4 and one: the means
    are those over 5 and over 4 pairs, in history, in the log and on the tracker."""
    five, three = make_pairs(5, seed=1), make_pairs(3, seed=2)
    sets = {"five": Dataset.from_list(five), "twice": Dataset.from_list([*three, three[1]])}
    reference = make_model(2)
    trainer, run, start = run_of(
        tmp_path, tokenizer, reference=reference, eval_set=sets, beta=0.3, max_steps=1, extra=(),
        per_device_eval_batch_size=batch,
    )  # fmt: skip
    twice = make_pair_id(three[1]["prompt"], three[1]["chosen"], three[1]["rejected"])
    for name, pairs in (("five", five), ("twice", three)):
        scores = [score_pairs(model, tokenizer, pairs) for model in (start, reference)]
        expected = logged_means(scores[0], scores[1], 0.3, {twice: 2})
        row = next(r for r in trainer.state.log_history if f"eval_{name}_loss" in r)
        assert_means(history_at(run, f"eval_{name}", 0), expected)
        assert_means(row, expected, f"eval_{name}_")
        assert_means(named(row), expected, f"eval_{name}/")
        assert not any(key.startswith("train/eval") for key in named(row))
        # TRL's own key holds the same number, for scripts that read it.
        assert row["eval_rewards/margins"] == row[f"eval_{name}_rewards/margins"]
    five_alone = history_at(run, "eval_five", 0)
    theirs = {k for k in five_alone if k.startswith("trl/")}
    # Batches of one pair: TRL's means over pairs are the set's, its means over tokens are not.
    per_token = {"trl/entropy", "trl/logits/chosen", "trl/logits/rejected"}
    assert theirs == per_token if batch == 1 else theirs > per_token


def test_trls_own_means_stand_beside_ours_where_they_differ(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """trl/NAME is bit for bit what stock TRL logs; a name without one is TRL's number but for rounding."""
    logs = {}
    for cls in (DPOTrainer, DiagDPOTrainer):
        trainer = cls(
            model=make_model(1), ref_model=make_model(2), processing_class=tokenizer,
            args=arguments(
                tmp_path, eval_strategy="steps", eval_steps=4, logging_steps=4, per_device_eval_batch_size=3
            ),
            train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(5, seed=1)),
        )  # fmt: skip
        trainer.train()
        logs[cls] = {
            "train": next(r for r in trainer.state.log_history if "loss" in r),
            "eval": next(r for r in trainer.state.log_history if "eval_loss" in r),
        }
    for kind, prefix in (("train", ""), ("eval", "eval_")):
        stock, ours = logs[DPOTrainer][kind], logs[DiagDPOTrainer][kind]
        means = [k.removeprefix(prefix) for k in stock if "/" in k or k.endswith(("loss", "entropy", "token_accuracy"))]
        listed = {name for name in means if f"{prefix}trl/{name}" in ours}
        assert listed >= {"rewards/margins", "rewards/chosen", "logps/chosen", "entropy", "logits/rejected"}
        assert ("loss" in listed) == (kind == "train")  # transformers weighs the evaluation's loss by its pairs
        for name in means:
            theirs = ours.get(f"{prefix}trl/{name}", pytest.approx(ours[prefix + name], rel=1e-5, abs=1e-5))
            assert stock[prefix + name] == theirs, name
        assert ours.get(f"{prefix}grad_norm") == stock.get(f"{prefix}grad_norm")


def test_a_window_of_training_batches(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Eleven pairs, batches of 3, 3, 3 and 2, accumulated by two: one window is one epoch, every pair once. At rate 0
    the policy stays what it was, so that the plain loop knows the window."""
    reference = make_model(2)
    trainer, run, start = run_of(
        tmp_path, tokenizer, reference=reference, beta=0.3, extra=(), learning_rate=0.0, max_steps=2, logging_steps=2,
        gradient_accumulation_steps=2, eval_strategy="no",
    )  # fmt: skip
    pairs = make_pairs(11)
    expected = logged_means(score_pairs(start, tokenizer, pairs), score_pairs(reference, tokenizer, pairs), 0.3)
    row = next(r for r in trainer.state.log_history if "loss" in r)
    assert_means(row, expected)
    assert_means(history_at(run, "train", 2), expected)
    assert {k for k in row if k.startswith("trl/")} >= {"trl/loss", "trl/rewards/margins"}
    rows = run.history.set_index(["split", "step", "name"])
    assert rows.loc[("train", 2, "rewards/margins"), "weight"] == rows.loc[("train", 2, "loss"), "weight"] == 11


def test_a_log_call_of_the_users_takes_nothing_from_the_window(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """TRL gives its running means to any log call and forgets them; then the window's row misses those steps."""

    class Speaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.log({"mine": 1.0})

    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, callbacks=[Speaks()],
        args=arguments(tmp_path, max_steps=2, logging_steps=2), train_dataset=Dataset.from_list(make_pairs(11)),
        recorder=tmp_path / "run",
    )  # fmt: skip
    trainer.train()
    mine = [r for r in trainer.state.log_history if "mine" in r]
    assert [set(r) for r in mine] == [{"mine", "epoch", "step"}] * 2
    rows = load_run(tmp_path / "run").history.set_index(["split", "step", "name"])
    assert rows.loc[("train", 2, "rewards/margins"), "weight"] == 6  # two batches of 3
    assert ("train", 1, "rewards/margins") not in rows.index
    # Two batches of the same size: had the call taken one of them, TRL's mean would be another.
    assert ("train", 2, "trl/rewards/margins") not in rows.index


def test_a_run_that_resumes_inside_a_window_logs_the_whole_window(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A row every 4 steps, stopped after step 6: the row at step 8 is over steps 5 to 8, as without the stop."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    def trainer_of(name: str, *callbacks: Any) -> DiagDPOTrainer:
        return DiagDPOTrainer(
            model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, callbacks=list(callbacks),
            args=arguments(tmp_path / name, max_steps=8, logging_steps=4, save_strategy="steps", save_steps=2),
            train_dataset=Dataset.from_list(make_pairs(11)), recorder=tmp_path / f"run_{name}",
        )  # fmt: skip

    trainer_of("stopped", Stop()).train()
    trainer_of("stopped").train(resume_from_checkpoint=True)
    trainer_of("whole").train()
    resumed, whole = (history_at(load_run(tmp_path / f"run_{n}"), "train", 8) for n in ("stopped", "whole"))
    names = [k for k in {*whole, *resumed} if not k.endswith(("runtime", "per_second"))]
    # TRL's own means are of the whole window too, and its mean loss of the whole run.
    known = {"num_tokens", "train_loss", "rewards/margins", "loss", "trl/rewards/margins", "trl/train_loss"}
    assert known <= {*names}
    assert {k: resumed.get(k) for k in names} == pytest.approx({k: whole.get(k) for k in names}, rel=1e-12)


@pytest.mark.parametrize("only_completion", [True, False])
def test_supervised_means(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, only_completion: bool) -> None:
    """Seven examples in batches of 3, 3, 1: loss, entropy and token accuracy are means over all tokens in the loss."""
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in make_pairs(7)]
    logs = {}
    for cls in (SFTTrainer, DiagSFTTrainer):
        trainer = cls(
            model=make_model(3), processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            args=SFTConfig(
                str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True,
                save_strategy="no", per_device_train_batch_size=3, per_device_eval_batch_size=3, max_steps=1,
                logging_steps=1, eval_strategy="steps", eval_steps=1, learning_rate=0.0,
                completion_only_loss=only_completion, dataloader_pin_memory=False,
            ),
        )  # fmt: skip
        trainer.train()
        logs[cls] = next(r for r in trainer.state.log_history if "eval_loss" in r)
    n = hits = 0.0
    sums = {"loss": 0.0, "entropy": 0.0}
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        mask = [0 if only_completion else 1] * len(prompt) + [1] * (len(ids) - len(prompt))
        found = score(make_model(3), ids, mask)
        n += found["n_tokens"]
        hits += found["top1"] * found["n_tokens"]
        sums["loss"] -= found["sum_logp"]
        sums["entropy"] += found["entropy_sum"]
    expected = {name: total / n for name, total in sums.items()} | {"mean_token_accuracy": hits / n}
    assert_means(logs[DiagSFTTrainer], expected, "eval_")
    for name in ("loss", "entropy"):  # TRL's: means of batches that differ in their tokens
        assert logs[DiagSFTTrainer][f"eval_trl/{name}"] == pytest.approx(logs[SFTTrainer][f"eval_{name}"], rel=1e-6)
