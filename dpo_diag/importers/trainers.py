"""Who wrote a log, which version, and whether its `logps` are sums or means: told by keys, files and cards."""

from __future__ import annotations

import re
from typing import NamedTuple

from dpo_diag.importers.rows import RowStore


class Reduction(NamedTuple):
    """`value` is "sum" or "mean" over a response's tokens; `why` says what decided."""

    value: str
    why: str


_MEAN_LOSSES = {
    "trl": ("ipo",),
    "llama-factory": ("ipo", "orpo", "simpo"),
    "ms-swift": ("ipo", "orpo", "simpo", "cpo"),
    "open-instruct": ("sigmoid_norm", "simpo"),
    "axolotl": ("ipo",),
}


def guess_trainer(store: RowStore | None, file_name: str) -> tuple[str, str | None]:
    """(trainer, version range) from the keys of its rows."""
    if store is None:
        return "unknown", None
    keys = {k for b in store.taken() for k in map(str, (*b.metrics, *b.dropped))}
    own = {k for b in store.blocks.values() for k in map(str, b.total_keys)}
    steps = {str(b.step_key) for b in store.blocks.values()}
    names = {name for _, name in store.metrics()}
    if "global_step/max_steps" in steps or "train_speed(iter/s)" in keys or "memory(GiB)" in keys:
        return "ms-swift", None
    if "current_steps" in steps:
        return "llama-factory", "v0"
    if file_name.startswith("trainer_log") and "total_steps" in own:
        return "llama-factory", "v1"
    if any(re.match(r"(rewards|logps)_(train|eval)", k) for k in keys):
        return "eric-mitchell/dpo", "2023"
    if any("log_probs/" in k for k in keys):
        return "torchtune", None
    if any(k.endswith(("chosen_reward", "reject_reward")) for k in keys):
        return "openrlhf", None
    if any("cross_entropy_loss" in k for k in keys):
        return "h2o-llmstudio", None
    if any(k.endswith(("rewards/accuracy", "rewards/margin")) for k in keys):
        return "open-instruct", None
    if any(n.startswith("rewards/") for n in names):
        if "mean_token_accuracy" in names or "num_tokens" in names:
            return "trl", ">=0.29"
        return "trl", "<=0.28"
    return "unknown", None


def logps_reduction(
    trainer: str, version: str | None, loss: tuple[str, ...], beta: float | None, asked: str | None
) -> Reduction:
    """Whether logged log-probs are summed or averaged over a response's tokens.

    Averages: ipo in TRL until 0.28 (0.7.11 on), ipo, orpo and simpo in LLaMA-Factory, dpo_norm in open-instruct.
    """
    if asked:
        return Reduction(asked, "as given")
    means = _MEAN_LOSSES.get(trainer, ())
    hit = [name for name in loss if name in means]
    if hit and not (trainer == "trl" and (version or "").startswith((">=0.29", "0.29", "0.3", "1."))):
        return Reduction(
            "mean", f"{trainer} {version or ''} averages log-probs over tokens under {hit[0]}".replace("  ", " ")
        )
    if not loss:
        return Reduction("sum", f"{trainer} {version or ''} sums; the loss is not known".replace("  ", " "))
    return Reduction("sum", f"{trainer} {version or ''} sums under {', '.join(loss)}".replace("  ", " "))
