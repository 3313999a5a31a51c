"""What is printed and mirrored from a log call."""

from __future__ import annotations

from dpo_diag.training.progress import evaluation_line, evaluation_prefix
from dpo_diag.training.tracker_callback import named

EVAL = {"eval_loss": 0.6, "eval_ppl_token/chosen": 1.5, "eval_rewards/accuracies": 0.75, "epoch": 1.0}
SET = {"eval_probe_loss": 0.6, "eval_probe_ppl_token/chosen": 1.5}
SCORE = {"eval_held_out_score/accuracy": 0.5}


def test_the_prefix_names_the_evaluation_set() -> None:
    assert evaluation_prefix(EVAL) == "eval_"
    assert evaluation_prefix(SET) == "eval_probe_"
    assert evaluation_prefix(SCORE) is None
    assert evaluation_prefix({"loss": 1.0}) is None


def test_the_line_is_short() -> None:
    assert evaluation_line(EVAL, 10) == "step 10    eval   loss 0.600  chosen ppl_token 1.500  reward acc. 0.750"
    assert evaluation_line(SET, 10) == "step 10    eval_probe loss 0.600  chosen ppl_token 1.500"
    assert evaluation_line(SCORE, 3) == "step 3     held_out accuracy 0.500"
    assert evaluation_line({"loss": 1.0}, 3) is None


def test_a_tracker_gets_split_and_metric() -> None:
    assert named(EVAL) == {
        "eval/loss": 0.6, "eval/ppl_token/chosen": 1.5, "eval/rewards/accuracies": 0.75, "train/epoch": 1.0,
    }  # fmt: skip
    assert named(SET) == {"eval_probe/loss": 0.6, "eval_probe/ppl_token/chosen": 1.5}
    assert named(SCORE) == {"held_out/score/accuracy": 0.5}
    assert named({"eval_held_out_kl/answers": 0.25}) == {"held_out/kl/answers": 0.25}
    assert named({"loss": 2, "note": "text", "flag": True}) == {"train/loss": 2.0}
