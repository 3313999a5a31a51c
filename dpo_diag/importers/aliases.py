"""Every trainer's metric names and ours: one literal table, and the rules for prefixes. `dpo-diag import --formats`
prints it.

A name says nothing about what was averaged: `meaning` does. Versions are those whose code or logs were read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Alias(NamedTuple):
    """One source name: who logs it, since or until when, our name, and what the number is."""

    trainer: str
    version: str
    key: str
    name: str
    meaning: str


_SUM = "mean over pairs of the response's summed token log-probs, nats (ipo until 0.28: of its token mean)"
_REWARD = "mean over pairs of beta x log-ratio to the reference"
_CE = "mean over responses of the mean token cross-entropy, nats"

ALIASES: tuple[Alias, ...] = (
    Alias("trl", "0.7-1.16", "loss", "loss", "training loss, mean since the last row; SFT terms included"),
    Alias("trl", "0.7-1.16", "rewards/chosen", "rewards/chosen", _REWARD),
    Alias("trl", "0.7-1.16", "rewards/rejected", "rewards/rejected", _REWARD),
    Alias("trl", "0.7-1.16", "rewards/accuracies", "rewards/accuracies", "share of pairs with a positive margin"),
    Alias("trl", "0.7-1.16", "rewards/margins", "rewards/margins", "mean of rewards/chosen - rewards/rejected"),
    Alias("trl", "0.7-1.16", "logps/chosen", "logps/chosen", _SUM),
    Alias("trl", "0.7-1.16", "logps/rejected", "logps/rejected", _SUM),
    Alias("trl", "0.7-1.16", "logits/chosen", "logits/chosen", "mean logit; not comparable between models"),
    Alias("trl", "0.7-1.16", "logits/rejected", "logits/rejected", "mean logit; not comparable between models"),
    Alias("trl", "0.7-1.16", "grad_norm", "grad_norm", "gradient norm before clipping"),
    Alias("trl", "0.7-1.16", "learning_rate", "learning_rate", "learning rate of the first parameter group"),
    Alias("trl", "0.8-0.28", "nll_loss", "nll_loss", "chosen token mean NLL (rpo_alpha), before its weight"),
    Alias("trl", "0.8-0.28", "aux_loss", "aux_loss", "router load-balancing loss of mixture-of-experts models"),
    Alias("trl", "0.29-1.16", "entropy", "entropy", "mean next-token entropy over both responses, nats"),
    Alias(
        "trl", "0.29-1.16", "mean_token_accuracy", "mean_token_accuracy", "share of targets that are the first choice"
    ),
    Alias("trl", "0.29-1.16", "num_tokens", "num_tokens", "tokens seen so far (a counter; under eval_ not a metric)"),
    Alias("trl", "0.9-0.28", "log_odds_ratio", "log_odds_ratio", "ORPO: mean log odds ratio"),
    Alias("trl", "0.9-0.28", "log_odds_chosen", "log_odds_chosen", "ORPO: mean log odds of chosen"),
    Alias("unsloth", "2024-", "training loss", "loss", "training loss in notebook tables"),
    Alias("unsloth", "2024-", "validation loss", "eval/loss", "evaluation loss in notebook tables"),
    Alias("llama-factory", "v0", "accuracy", "rewards/accuracies", "trainer_log.jsonl: share of positive margins"),
    Alias("llama-factory", "v0", "reward", "rewards/margins", "trainer_log.jsonl: reward"),
    Alias("llama-factory", "v0", "lr", "learning_rate", "trainer_log.jsonl: learning rate"),
    Alias("llama-factory", "v0", "sft_loss", "nll_loss", "ORPO: mean per-sequence NLL of chosen"),
    Alias("llama-factory", "v0", "odds_ratio_loss", "log_odds_ratio_loss", "ORPO: the odds-ratio term"),
    Alias("llama-factory", "v1", "learning_rate", "learning_rate", "all metrics under TRL's names, plus step"),
    Alias("ms-swift", "2-3", "token_acc", "mean_token_accuracy", "share of targets that are the first choice"),
    Alias("ms-swift", "2", "acc", "mean_token_accuracy", "share of targets that are the first choice (SFT rows)"),
    Alias("openrlhf", "0.5-0.8", "acc", "rewards/accuracies", "share of positive margins of one batch (no token_acc)"),
    Alias("openrlhf", "0.5-0.8", "acc_mean", "rewards/accuracies", "evaluation: mean over the set"),
    Alias("openrlhf", "0.5-0.8", "train/acc_mean", "accuracies_running_mean", "training: exponential running mean"),
    Alias("openrlhf", "0.5-0.8", "loss_mean", "loss_running_mean", "exponential running mean of loss"),
    Alias("openrlhf", "0.5-0.8", "chosen_reward", "rewards/chosen", _REWARD),
    Alias("openrlhf", "0.5-0.8", "reject_reward", "rewards/rejected", _REWARD),
    Alias("openrlhf", "0.5-0.8", "rejected_reward", "rewards/rejected", _REWARD),
    Alias("openrlhf", "0.5-0.8", "reward_diff", "rewards/margins", "mean margin"),
    Alias("openrlhf", "0.5-0.8", "eval_loss", "eval/loss", "evaluation loss"),
    Alias("openrlhf", "0.5-0.8", "lr", "learning_rate", "learning rate"),
    Alias("h2o-llmstudio", "1.4-1.14", "chosen_rewards", "rewards/chosen", _REWARD),
    Alias("h2o-llmstudio", "1.4-1.14", "rejected_rewards", "rewards/rejected", _REWARD),
    Alias("h2o-llmstudio", "1.4-1.14", "reward_margin", "rewards/margins", "mean margin"),
    Alias("h2o-llmstudio", "1.4-1.14", "chosen_cross_entropy_loss", "ce/chosen", _CE),
    Alias("h2o-llmstudio", "1.4-1.14", "rejected_cross_entropy_loss", "ce/rejected", _CE),
    Alias("h2o-llmstudio", "1.4-1.14", "perplexity", "ppl_seq_mean/chosen", "mean over answers of exp(ce), chosen"),
    Alias("h2o-llmstudio", "1.4-1.14", "rejected_perplexity", "ppl_seq_mean/rejected", "mean over answers of exp(ce)"),
    Alias("h2o-llmstudio", "1.4-1.14", "bleu", "score/bleu", "BLEU of generated answers (0 to 100)"),
    Alias("h2o-llmstudio", "1.4-1.14", "gpt", "score/gpt_judge", "score by a judge model"),
    Alias("h2o-llmstudio", "1.4-1.14", "lr", "learning_rate", "under meta"),
    Alias("torchtune", "0.2-0.6", "log_probs/chosen", "logps/chosen", "summed log-probs; one device: last micro-batch"),
    Alias("torchtune", "0.2-0.6", "log_probs/rejected", "logps/rejected", "summed log-probs; one device: as above"),
    Alias("torchtune", "0.2-0.6", "lr", "learning_rate", "learning rate"),
    Alias("tunix", "0.1", "rewards/margin", "rewards/margins", "mean margin"),
    Alias("eric-mitchell/dpo", "2023", "rewards_train/chosen", "rewards/chosen", _REWARD),
    Alias("eric-mitchell/dpo", "2023", "rewards_eval/chosen", "eval/rewards/chosen", _REWARD),
    Alias("eric-mitchell/dpo", "2023", "logps_train/chosen", "logps/chosen", "mean of summed log-probs, nats"),
    Alias("eric-mitchell/dpo", "2023", "logps_eval/chosen", "eval/logps/chosen", "mean of summed log-probs, nats"),
    Alias("eric-mitchell/dpo", "2023", "loss/train", "loss", "steps are counted in examples"),
    Alias("eric-mitchell/dpo", "2023", "loss/eval", "eval/loss", "steps are counted in examples"),
    Alias("open-instruct", "2024-2026", "rewards/accuracy", "rewards/accuracies", "share of positive margins"),
    Alias("open-instruct", "2024-2026", "rewards/margin", "rewards/margins", "mean margin"),
    Alias("open-instruct", "2024-2026", "rewards/average", "rewards/average", "mean of both rewards"),
    Alias("open-instruct", "2024-2026", "train_loss", "loss", "training loss of a row (not a final summary)"),
    Alias("any", "", "train_loss", "loss", "training loss, where the row is not a final summary"),
    Alias("any", "", "training_loss", "loss", "training loss"),
    Alias("any", "", "dpo_loss", "loss", "training loss"),
    Alias("any", "", "loss/dpo", "preference_loss", "preference part of the loss"),
    Alias("any", "", "val_loss", "eval/loss", "evaluation loss"),
    Alias("any", "", "lr", "learning_rate", "learning rate"),
    Alias("any", "", "gradient_norm", "grad_norm", "gradient norm"),
    Alias("any", "", "reward_accuracy", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "reward_accuracies", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "reward_margins", "rewards/margins", "mean margin"),
    Alias("any", "", "reward_chosen", "rewards/chosen", _REWARD),
    Alias("any", "", "reward_rejected", "rewards/rejected", _REWARD),
    Alias("any", "", "chosen_logps", "logps/chosen", "log-probs of chosen; sum or mean: see logps_reduction"),
    Alias("any", "", "rejected_logps", "logps/rejected", "log-probs of rejected; sum or mean: see logps_reduction"),
    Alias("any", "", "chosen_rewards", "rewards/chosen", _REWARD),
    Alias("any", "", "rejected_rewards", "rewards/rejected", _REWARD),
    Alias("any", "", "margins", "rewards/margins", "mean margin"),
    Alias("any", "", "margin", "rewards/margins", "mean margin"),
    Alias("any", "", "accuracies", "rewards/accuracies", "share of positive margins"),
)

# The table's own rows for eric-mitchell stand for a pattern (any side, any set): see `_ERIC`.
_NAMES: dict[str, str] = {}
for _alias in ALIASES:
    if not _alias.key.startswith(("rewards_", "logps_")):
        _NAMES.setdefault(_alias.key, _alias.name)
for _name in ("ce/chosen", "ce/rejected", "greedy_logp/chosen", "greedy_logp/rejected", "loss_residual",
              "preference_loss"):  # fmt: skip
    _NAMES.setdefault(_name, _name)
_BY_TRAINER: dict[tuple[str, str], str] = {(a.trainer, a.key): a.name for a in ALIASES}

STEP_KEYS: tuple[str, ...] = (
    "train/global_step", "global_step", "trainer/global_step", "step", "current_steps", "global_step/max_steps",
    "eval/global_step", "steps", "training_step", "iteration", "iter", "counters/examples", "_step",
)  # fmt: skip
"""Columns that can hold the optimizer step, best first. W&B's `_step` counts log calls, so it comes last."""
EPOCH_KEYS: tuple[str, ...] = ("epoch", "train/epoch", "epochs", "current_epoch")
TOTAL_KEYS: tuple[str, ...] = ("max_steps", "total_steps", "num_training_steps")

_BOOKKEEPING = re.compile(
    r"(?:.*[_/])?(?:runtime|samples_per_second|steps_per_second|steps/second|samples/second|total_flos|percentage|"
    r"elapsed_time|remaining_time|throughput|tokens_per_second(?:_per_gpu)?|memory\(gib\)|train_speed\([^)]*\)|"
    r"_timestamp|timestamp|_runtime|wall.?time|time|eta|examples_per_second|num_input_tokens_seen|"
    r"peak_memory_(?:active|alloc|reserved)|memory/.*|model_preparation_time|_wandb.*|_wall_time)"
)
_SPLIT = re.compile(r"(train(?:ing)?|eval(?:uation)?|validation|val|valid|dev|test|held_?out)([_/.])(.+)", re.DOTALL)
_ERIC = re.compile(r"(rewards|logps|loss|logits|nll)_(train|eval(?:_[\w-]+)?|test)/(.+)")
_LOSS_OF = re.compile(r"loss/(train|eval(?:_[\w-]+)?|test)")
_FIXED = {"eval": "eval", "evaluation": "eval", "validation": "eval", "val": "eval", "valid": "eval", "dev": "eval"}


class Place(NamedTuple):
    """Where a source key goes: a split and our name; `known` is False for a key that is kept under its own name."""

    split: str
    name: str
    known: bool


def clean_key(raw: str) -> str:
    """`rewards / chosen` (notebook tables), `additional_log_x` (H2O) and stray spaces."""
    return re.sub(r"\s*/\s*", "/", raw.strip()).removeprefix("additional_log_")


def is_bookkeeping(raw: str) -> bool:
    """Timing, memory and counters of the log itself: not metrics."""
    key = clean_key(raw).lower()
    if _BOOKKEEPING.fullmatch(key):
        return True
    return key.endswith("num_tokens") and key.startswith(("eval", "valid", "test"))


def _lookup(key: str, trainer: str) -> str | None:
    lower = key.lower()
    return _BY_TRAINER.get((trainer, lower)) or _NAMES.get(lower)


@lru_cache(maxsize=8192)
def place(raw: str, trainer: str = "any") -> Place | None:
    """Split and name of a source key; None for bookkeeping. Evaluation sets by name become `eval_<name>`."""
    if is_bookkeeping(raw):
        return None
    key = clean_key(raw)
    found = _lookup(key, trainer)
    if found is not None:
        return _placed(found)
    if match := _LOSS_OF.fullmatch(key):
        return Place(_split_name(match.group(1)), "loss", True)
    if match := _ERIC.fullmatch(key):
        name = f"{match.group(1)}/{match.group(3)}"
        mapped = _NAMES.get(name.lower())
        return Place(_split_name(match.group(2)), mapped or name, mapped is not None)
    if match := _SPLIT.fullmatch(key):
        word, mark, rest = match.groups()
        if word.lower().startswith("train"):
            if mark == "_" and _lookup(rest, trainer) is None:
                return Place("train", key, False)
            return _inside("train", rest, trainer)
        return _inside(_split_name(word), rest, trainer)
    return Place("train", key, False)


def _placed(name: str, split: str = "train") -> Place:
    if name.startswith("eval/"):
        return Place("eval" if split == "train" else split, name.removeprefix("eval/"), True)
    return Place(split, name, True)


def _split_name(word: str) -> str:
    lower = word.lower()
    if lower.startswith("train"):
        return "train"
    if lower in _FIXED:
        return _FIXED[lower]
    return word if lower.startswith("eval_") else f"eval_{word}"


def _inside(split: str, rest: str, trainer: str) -> Place:
    """The name after a split's prefix: known, or a set's name and a known one, or kept as it is."""
    found = _lookup(rest, trainer)
    if found is not None:
        return _placed(found, split)
    if split == "train":
        inner = _SPLIT.fullmatch(rest)
        return Place("train", inner.group(3) if inner and inner.group(1).startswith("train") else rest, False)
    if inner := re.fullmatch(r"eval_(.+)", rest):
        return _inside(split, inner.group(1), trainer)
    for mark in ("_", "/", "-"):
        if named := _set_in_front(rest, trainer, mark, split):
            return named
    return Place(split, rest, False)


def _set_in_front(rest: str, trainer: str, mark: str, split: str = "eval") -> Place | None:
    """`helpful_rewards/chosen` -> eval_helpful, rewards/chosen: the longest known name at the end wins."""
    start = 0
    while (cut := rest.find(mark, start)) >= 0:
        found = _lookup(rest[cut + 1 :], trainer)
        if found is not None and cut > 0:
            return _placed(found, f"{split}_{rest[:cut]}")
        start = cut + 1
    return None
