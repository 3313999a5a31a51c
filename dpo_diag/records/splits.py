"""What a split's pairs are to the training, and which split is shown first. The only place that reads a split's name.

Roles stand in run.json (`splits`). A run of schema 1.0 and a foreign log do not say them: `role_from_name` decides
there, once, when the log is imported or the old run is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

from dpo_diag.records.schemas import EVAL_SPLIT, TRAIN_SPLIT

Role = Literal["train", "train_probe", "held_out", "other"]
"""train: batches that the training used, other pairs at each step. train_probe: a fixed set drawn from the training
pairs. held_out: a fixed set that the training did not see. other: prompts, or a set of unknown origin."""

ROLES: tuple[Role, ...] = ("held_out", "train_probe", "other", "train")
"""In the order in which an analysis prefers them."""


def role_from_name(split: str) -> Role:
    """The role that a split's name suggests: for sources that say nothing else.

    >>> [role_from_name(s) for s in ("train", "eval", "eval_train_probe", "validation", "paraphrased")]
    ['train', 'held_out', 'train_probe', 'held_out', 'other']
    """
    name = split.lower()
    if name == TRAIN_SPLIT or name.startswith((f"{TRAIN_SPLIT}/", f"{TRAIN_SPLIT}_")):
        return "train"
    if re.search(r"(?<![a-z])(train|(seen|like)(?![a-z]))", name):  # not constrained, unseen, likelihood
        return "train_probe"
    return "held_out" if re.match(r"eval|valid|test|held", name) else "other"


def preferred(splits: Iterable[str], role: Callable[[str], Role]) -> list[str]:
    """Splits, best first: `eval`, then by role (`ROLES`), then by name."""
    return sorted(splits, key=lambda s: (s != EVAL_SPLIT, ROLES.index(role(s)), s))
