"""Every trainer's metric names and ours: one literal table. `dpo-diag import --formats` prints it.

A name says nothing about what was averaged: `meaning` does. Versions are those whose code or logs were read.
"""

from __future__ import annotations

from collections import defaultdict
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
_MEAN = "mean over responses of the response's mean token log-prob, nats: minus a cross-entropy"
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
    Alias("mlx-lm-lora", "0.2-1", "chosen_reward", "rewards/chosen", _REWARD),
    Alias("mlx-lm-lora", "0.2-1", "rejected_reward", "rewards/rejected", _REWARD),
    Alias("mlx-lm-lora", "0.2-1", "chosen_r", "rewards/chosen", _REWARD),
    Alias("mlx-lm-lora", "0.2-1", "rejected_r", "rewards/rejected", _REWARD),
    Alias("mlx-lm-lora", "0.2-1", "acc", "rewards/accuracies", "share of positive margins"),
    Alias("mlx-lm-lora", "0.2-1", "accuracy", "rewards/accuracies", "share of positive margins; 1.2: a count"),
    Alias("trl", "GRPO, PPO", "reward", "reward", "mean reward of sampled answers: out of scope"),
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
    Alias("any", "", "reward_acc", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "preference_accuracy", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "pref_accuracy", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "pref_acc", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "reward_accuracies", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "reward_margins", "rewards/margins", "mean margin"),
    Alias("any", "", "reward_chosen", "rewards/chosen", _REWARD),
    Alias("any", "", "reward_rejected", "rewards/rejected", _REWARD),
    Alias("any", "", "chosen_logps", "logps/chosen", "log-probs of chosen; sum or mean: see logps in run.json"),
    Alias("any", "", "rejected_logps", "logps/rejected", "log-probs of rejected; sum or mean: see logps in run.json"),
    Alias("any", "", "chosen_rewards", "rewards/chosen", _REWARD),
    Alias("any", "", "rejected_rewards", "rewards/rejected", _REWARD),
    Alias("any", "", "margins", "rewards/margins", "mean margin"),
    Alias("any", "", "margin", "rewards/margins", "mean margin"),
    Alias("any", "", "accuracies", "rewards/accuracies", "share of positive margins"),
    Alias("any", "", "rewards_chosen", "rewards/chosen", _REWARD),
    Alias("any", "", "rewards_rejected", "rewards/rejected", _REWARD),
    Alias("any", "", "logp/chosen", "logps/chosen", "log-probs of chosen; sum or mean: see logps in run.json"),
    Alias("any", "", "logp/rejected", "logps/rejected", "log-probs of rejected; sum or mean: see logps in run.json"),
    Alias("any", "", "policy_chosen_logps", "logps/chosen", "log-probs of chosen under the policy"),
    Alias("any", "", "policy_rejected_logps", "logps/rejected", "log-probs of rejected under the policy"),
    Alias("any", "", "avg_logps/chosen", "mean_logps/chosen", _MEAN),
    Alias("any", "", "avg_logps/rejected", "mean_logps/rejected", _MEAN),
    Alias("any", "", "logps_avg/chosen", "mean_logps/chosen", _MEAN),
    Alias("any", "", "logps_avg/rejected", "mean_logps/rejected", _MEAN),
    Alias("any", "", "chosen_avg_logps", "mean_logps/chosen", _MEAN),
    Alias("any", "", "rejected_avg_logps", "mean_logps/rejected", _MEAN),
    Alias("any", "", "chosen_logps_avg", "mean_logps/chosen", _MEAN),
    Alias("any", "", "rejected_logps_avg", "mean_logps/rejected", _MEAN),
    Alias("any", "", "policy_chosen_logps_avg", "mean_logps/chosen", _MEAN),
    Alias("any", "", "policy_rejected_logps_avg", "mean_logps/rejected", _MEAN),
    Alias("any", "", "chosen_cross_entropy", "ce/chosen", _CE),
    Alias("any", "", "rejected_cross_entropy", "ce/rejected", _CE),
    Alias("any", "", "grad/norm", "grad_norm", "gradient norm"),
    Alias("any", "", "total_norm", "grad_norm", "gradient norm"),
)

_OURS = (
    "ce/chosen", "ce/rejected", "mean_logps/chosen", "mean_logps/rejected",
    "greedy_logp/chosen", "greedy_logp/rejected", "loss_residual", "preference_loss",
)  # fmt: skip
"""Names that this project's own logs add to TRL's."""


def _by_key() -> dict[str, str]:
    """Names that mean the same whoever logs them: keys on which trainers disagree (`acc`) need the trainer."""
    names: dict[str, set[str]] = defaultdict(set)
    for alias in ALIASES:
        # eric-mitchell's `rewards_train/` and `logps_eval/` stand for a pattern that the importers read.
        if not alias.key.startswith(("rewards_train/", "rewards_eval/", "logps_train/", "logps_eval/")):
            names[alias.key].add(alias.name)
    return {key: found.pop() for key, found in names.items() if len(found) == 1} | {name: name for name in _OURS}


_NAMES = _by_key()
_BY_TRAINER = {(alias.trainer, alias.key): alias.name for alias in ALIASES}


def canonical(key: str, trainer: str = "any") -> str | None:
    """Our name of a trainer's key (an evaluation's begins with eval/); None where it is not known.

    >>> canonical("acc", "openrlhf"), canonical("acc", "ms-swift"), canonical("acc")
    ('rewards/accuracies', 'mean_token_accuracy', None)
    """
    lower = key.lower()
    return _BY_TRAINER.get((trainer, lower)) or _NAMES.get(lower)


def logged_names(name: str) -> tuple[str, ...]:
    """A metric's own name, then the keys that always mean it: an old import kept those under their own names."""
    return (name, *(key for key, ours in _NAMES.items() if ours == name and key != name))
