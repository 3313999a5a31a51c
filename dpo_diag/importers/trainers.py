"""Who wrote a log, which version, and whether that trainer's `logps` are sums or means."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dpo_diag.importers.rows import RowStore
from dpo_diag.losses import NAMED
from dpo_diag.records.inferred import LARGEST_MEAN_LOGP


class Reduction(NamedTuple):
    """What log-probs are over a response's tokens, None if undecided; `why` is what decided."""

    value: Literal["sum", "mean"] | None
    why: str


_MEAN_LOSSES = {
    "trl": ("ipo", "orpo", "simpo"),
    "llama-factory": ("ipo", "orpo", "simpo"),
    "ms-swift": ("ipo", "orpo", "simpo", "cpo"),
    "open-instruct": ("sigmoid_norm", "simpo"),
    "axolotl": ("ipo",),
}
"""Losses under which a trainer logs token means; of another trainer those that are defined on them."""


def guess_trainer(store: RowStore, file_name: str) -> tuple[str, str | None]:
    """(trainer, version range) from the keys of its rows."""
    keys = {k for b in store.filled() for k in map(str, (*b.metrics, *b.dropped))}
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
    trainer: str,
    version: str | None,
    loss: tuple[str, ...],
    asked: Literal["sum", "mean"] | None,
    size: float | None,
    reference_free: bool,
) -> Reduction:
    """Whether logged log-probs are summed or averaged over a response's tokens; None where nothing decides.

    Averages: ipo in TRL until 0.28, orpo and simpo in its trainers for them; ipo, orpo and
    simpo in LLaMA-Factory; dpo_norm in open-instruct.

    Args:
        asked: what the user says.
        reference_free: the rewards hold no reference: a loss that averages (ORPO, SimPO), or CPO, which sums.
        size: median of |logps/chosen| in nats, if logged: a small one can be a short response's sum or a token mean.
    """
    if asked:
        return Reduction(asked, "as given")
    who = f"{trainer} {version}" if version else trainer
    small = size is None or size < LARGEST_MEAN_LOGP
    own = _MEAN_LOSSES.get(trainer)
    hit = [name for name in loss if (name in own if own is not None else name in NAMED and NAMED[name].per_token)]
    if hit and not small:
        return Reduction("sum", f"{hit[0]} averages log-probs over tokens, but |logps| is {size:.3g} nats: sums")
    if hit and not (hit == ["ipo"] and trainer == "trl" and _at_least(version, (0, 29))):
        return Reduction("mean", f"{who} averages log-probs over tokens under {hit[0]}")
    if loss:
        return Reduction("sum", f"{who} sums log-probs under {', '.join(loss)}")
    if size is not None and small and (reference_free or not (trainer == "trl" and _at_least(version, (0, 29)))):
        return Reduction(None, f"not decided: the loss is not known and |logps| is {size:.2g} nats (--logps sum|mean)")
    return Reduction("sum", f"{who} sums log-probs; the loss is not known")


def _at_least(version: str | None, wanted: tuple[int, int]) -> bool:
    """Whether a version or range (`1.16`, `>=0.29`) lies at or above `wanted`; False for an unknown one."""
    match = re.search(r"(?<!\d)(\d{1,9})\.(\d{1,9})", version or "")
    if match is None or (version or "").startswith("<"):
        return False
    return (int(match.group(1)), int(match.group(2))) >= wanted
