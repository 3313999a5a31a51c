"""Logs of trainings that this project does not judge: online reinforcement learning (GRPO, PPO, RLOO)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dpo_diag.errors import DiagError

_ONLINE = re.compile(
    r"(?:(?:train|eval)[/_])?(?:reward|reward_std|rewards/(?:mean|std)|kl|mean_kl|approx_?kl|completion_length|"
    r"completions?/(?:mean|min|max|clipped).*|frac_reward_zero_std|clip_ratio.*|clip_?frac.*|objective/.*|"
    r"policy/\w+_avg|val/(?:ratio|clipfrac).*|loss/(?:policy|value)_avg|actor/(?:pg_|ppo_|kl_|entropy).*|critic/.*|"
    r"advantages?(?:/.*)?|response_length(?:/.*)?|rollout.*|num_generations|ppo/.*|rewards/\w+_(?:reward|func)\w*(?:/\w+)?|"
    r"policy_loss|value_loss|returns?(?:/.*)?|total_r(?:ewards)?_mean|sampling/.*)"
)
"""What trainers log of answers that the policy samples and a reward function scores."""
_PREFERENCE = re.compile(
    r"(?:rewards|logps|mean_logps|ce|ref_logps)/(?:chosen|rejected)|rewards/(?:margins|accuracies)|log_odds.*"
)
LEAST_KEYS = 2
"""Such keys that a log must hold: `kl` alone is KTO's, `reward` alone LLaMA-Factory's."""


def is_online_key(key: str) -> bool:
    """Whether a key is one of online reinforcement learning."""
    return _ONLINE.fullmatch(key.lower()) is not None


def check_scope(keys: Iterable[str], names: Iterable[str], where: str) -> None:
    """Refuse a log of online reinforcement learning; one that holds chosen and rejected as well is read.

    Args:
        keys: as the log names them.
        names: ours.

    Raises:
        DiagError: it holds no quantity of preference pairs.
    """
    online = sorted(key for key in keys if is_online_key(key))
    if len(online) < LEAST_KEYS or any(_PREFERENCE.fullmatch(name) for name in names):
        return
    raise DiagError(
        "a log of online reinforcement learning (GRPO, PPO): out of scope",
        where=where,
        got=", ".join(online[:5]) + (", ..." if len(online) > 5 else ""),
        expected="a preference training: rewards or log-probs of chosen and rejected answers",
        hint="dpo-diag judges DPO and its relatives",
    )
