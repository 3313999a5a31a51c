"""Console lines that name their numbers: own loops, mlx-lm, bars, blocks of metrics; and lines that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.importers.key_values import parse_line
from tests.importers.conftest import Importing
from tests.importers.forms import console, frame, lines, log, summary, training
from tests.importers.reading import steps, value


@pytest.mark.parametrize(
    ("text", "step", "row"),
    [
        ("step=7 loss=0.69 margin=0.01", 7, {"loss": "0.69", "margin": "0.01"}),
        ("[dpo] step=10 loss=6.9e-1 kl=-0.2", 10, {"loss": "6.9e-1", "kl": "-0.2"}),
        ("Epoch:[1/1](20/4292), loss: 0.69, lr: 1.0e-05, epoch_Time:90.0min:", 20, {"loss": "0.69", "lr": "1.0e-05"}),
        ("2024-08-12 18:59:58,123 - INFO - main.py:12 - [rank0] Step 100/1000 | loss 0.53 | acc 0.7", 100,
         {"loss": "0.53", "acc": "0.7"}),
        ("Iter 10: Train loss 0.61, Chosen reward -0.05, Learning Rate 1.0e-05, It/sec 0.1, Peak mem 5.2 GB", 10,
         {"train_loss": "0.61", "chosen_reward": "-0.05", "learning_rate": "1.0e-05"}),
        ("Iter 200: Val loss 0.693, Val chosen reward 0.000, Val took 0.7s", 200,
         {"val_loss": "0.693", "val_chosen_reward": "0.000"}),
        ("1|10|Loss: 0.6931:  10%|█         | 10/100 [00:10<01:30,  1.00it/s]", 10, {"loss": "0.6931"}),
        ("step:10 - actor/loss:0.5 - actor/lr:5e-07 - perf/total_time:3.2", 10, {"loss": "0.5", "lr": "5e-07"}),
        ("Training:  10%|█  | 10/100 [00:10<01:30, 1.0it/s, loss=nan, rewards/margins=0.1]", None,
         {"loss": "nan", "rewards/margins": "0.1"}),
        ("[  20/4292] loss=0.69 reward accuracy: 70.0%", 20, {"loss": "0.69", "reward_accuracy": "0.7"}),
        ("Eval step 10: loss=0.5", 10, {"eval/loss": "0.5"}),
        ("global step 1000 loss: 0.5 tokens: 1,234", 1000, {"loss": "0.5"}),
    ],
)  # fmt: skip
def test_lines_that_are_rows(text: str, step: int | None, row: dict[str, str]) -> None:
    line = parse_line(text)
    assert line is not None
    assert line.step == step
    assert {k: v for k, v in line.row.items() if k in row or k != "tokens"} == row


@pytest.mark.parametrize(
    "text",
    [
        "The loss function is sigmoid with beta 0.1",
        "loss: 0.53",
        "Saving model checkpoint at step 100, loss 0.5",
        "Early stopping: best loss 0.4 at step 50",
        "TrainOutput(global_step=100, training_loss=0.5, metrics={'train_runtime': 1.0})",
        "using max_steps=100 warmup=10 loss_scale=1.0",
        "pip install loss==1.0.2",
        "step 100: 12.5 it/s, 3.2 GB",
        "{'loss': 0.6931, 'epoch': 0.1}",
        "Downloading shards: 100%|████| 12/12 [00:01<00:00, 3.2it/s]",
        "loss " * 10_000 + "step 3 loss 0.5",
        "a-" * 4000 + " loss=",
    ],
)
def test_lines_that_are_none(text: str) -> None:
    assert parse_line(text) is None


def test_a_step_counted_anew_in_each_epoch_counts_on(tmp_path: Path, imported: Importing) -> None:
    text = "".join(
        f"Epoch {epoch}/2, Step {step}/100, Loss: {1 - epoch / 10 - step / 1000:.3f}, Reward margin: 0.1\n"
        for epoch in (1, 2)
        for step in (50, 100)
    )
    result, run = imported(log(tmp_path / "train.log", text))
    assert (result["format"], run.info.source.steps) == ("text", "stated")
    assert steps(run, "loss") == [50, 100, 150, 200]
    assert value(run, "loss", 200) == 0.7


def test_what_is_guessed_of_short_names_is_said(tmp_path: Path, imported: Importing) -> None:
    """chosen - rejected = margin: they are rewards, and acc beside them is the share of positive margins."""
    text = "".join(f"step={s} loss=0.6 chosen=0.2 rejected=-0.3 margin=0.5 acc=0.75\n" for s in (1, 2, 3))
    result, run = imported(log(tmp_path / "train.log", text))
    assert (value(run, "rewards/chosen", 2), value(run, "rewards/accuracies", 2)) == (0.2, 0.75)
    assert result["notes"] == [
        "taken as rewards: chosen and rejected, whose difference is margin",
        "taken as the share of pairs with a positive margin: acc, beside rewards",
    ]
    # No difference, no guess: chosen may be a log-prob, and acc anything.
    result, run = imported(log(tmp_path / "other.log", text.replace("margin=0.5 ", "")))
    assert {"chosen", "rejected", "acc"} <= set(run.history["name"])
    assert result["notes"] == []


def test_mlx_lm_loras_console(tmp_path: Path, imported: Importing) -> None:
    text = "Starting ORPO training..., iters: 20\n" + "".join(
        f"Iter {s}: loss 0.6{s}, chosen_r -0.1, rejected_r -0.4, acc 0.900, margin 0.3, lr 1.0e-05, it/s 0.1, "
        f"tok/s 63.9, peak_mem 5.276GB\nIter {s}: Val loss 0.5, Val accuracy 1.000, Val took 0.6s\n"
        for s in (10, 20)
    )
    result, run = imported(log(tmp_path / "train.log", text))
    assert (result["trainer"], run.info.loss_names) == ("mlx-lm-lora", ("orpo",))
    assert (value(run, "loss", 10), value(run, "rewards/accuracies", 10)) == (0.61, 0.9)
    assert (value(run, "loss", 20, "eval"), value(run, "rewards/accuracies", 20, "eval")) == (0.5, 1.0)
    assert set(run.history["name"]) == {
        "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "learning_rate"
    }  # fmt: skip


def test_a_bar_that_is_drawn_many_times_at_one_step_is_one_row(tmp_path: Path, imported: Importing) -> None:
    text = "".join(
        f"\r{done}%|█  | {done}/100 [00:10<01:30, 1.0it/s, loss={loss}, acc=0.5]"
        for done in (10, 20)
        for loss in (0.9, 0.7, 0.5)
    )
    result, run = imported(log(tmp_path / "train.log", text))
    assert (steps(run, "loss"), value(run, "loss", 10)) == ([10, 20], 0.5)
    assert (result["read"], result["duplicates"], run.info.source.steps) == (2, 0, "bar")


def test_a_block_of_evaluation_metrics(tmp_path: Path, imported: Importing) -> None:
    """The last row's step holds for the evaluation; the training's own block is a summary."""
    text = (
        "step 10 | loss 0.6 | margin 0.1\nstep 20 | loss 0.5 | margin 0.2\n"
        "***** train metrics *****\n  epoch         =        1.0\n  train_loss    =     0.5512\n"
        "***** eval metrics *****\n  epoch                   =        1.0\n  eval_loss               =     0.4812\n"
        "  eval_rewards/chosen     =     -0.123\n  eval_runtime            = 0:00:10.12\nbye\n"
    )
    _, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == [10, 20]
    assert (value(run, "loss", 20, "eval"), value(run, "rewards/chosen", 20, "eval")) == (0.4812, -0.123)


def test_two_trainings_of_an_own_loop(tmp_path: Path, imported: Importing) -> None:
    text = "".join(f"step={s} loss=0.{70 - s} margin=0.1\n" for s in (10, 20, 30, 10, 20, 30, 40))
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == [10, 20, 30, 40]
    assert "number 2 is taken (4 rows)" in result["notes"][0]


def test_rows_behind_a_long_beginning(tmp_path: Path, imported: Importing) -> None:
    """More text than a format is recognised by, and no dictionary at all."""
    text = "collecting packages\n" * 5000 + "step=1 loss=0.6 margin=0.1\nstep=2 loss=0.5 margin=0.2\n"
    result, run = imported(log(tmp_path / "train.log", text))
    assert (steps(run, "loss"), result["format"]) == ([1, 2], "text")


GRPO = {"loss": 0.0, "reward": 0.9, "reward_std": 0.8, "kl": 1e-4, "completions/mean_length": 850.0, "step": 10}
VERL = "step:10 - critic/score/mean:0.4 - actor/pg_loss:0.01 - actor/ppo_kl:0.001 - response_length/mean:120.0\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.log", f"{GRPO}\n{GRPO}\n"),
        ("trainer_state.json", json.dumps({"log_history": [GRPO, {**GRPO, "step": 20}]})),
        ("rows.jsonl", json.dumps({**GRPO, "frac_reward_zero_std": 0.25}) + "\n"),
        ("rows.csv", "step,loss,reward,kl,rewards/format_reward\n10,0.0,0.9,0.001,0.1\n20,0.0,0.8,0.002,0.2\n"),
        ("ppo.jsonl", '{"step": 1, "objective/kl": 0.1, "objective/scores": 2.0, "loss/policy_avg": 0.1}\n'),
        ("verl.log", VERL * 3),
    ],
)
def test_online_reinforcement_learning_is_out_of_scope(
    tmp_path: Path, imported: Importing, name: str, text: str
) -> None:
    with pytest.raises(DiagError, match=r"online reinforcement learning \(GRPO, PPO\): out of scope") as caught:
        imported(log(tmp_path / name, text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run1").exists()


def test_online_dpo_is_read(tmp_path: Path, imported: Importing) -> None:
    """Keys of both: the rewards of chosen and rejected are there to judge; `reward` is no margin."""
    rows = [{**row, "objective/kl": 0.1, "objective/scores": 1.0, "reward": 2.0} for row in training()]
    _, run = imported(lines(tmp_path / "online.jsonl", rows))
    assert value(run, "rewards/margins", 10) == rows[0]["rewards/margins"]
    assert value(run, "reward", 10) == 2.0


def test_dictionaries_win_over_lines(tmp_path: Path, imported: Importing) -> None:
    text = "step=1 loss=9.0 margin=0.1\n" + console(training()) + summary(100, 2.0) + frame(100, 100)
    result, run = imported(log(tmp_path / "train.log", text))
    assert result["format"] == "console"
    assert steps(run, "loss") == list(range(10, 101, 10))
