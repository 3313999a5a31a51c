"""Where a log's key goes: its split from prefixes, its name from the alias table (`records.metric_aliases`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from dpo_diag.records.metric_aliases import canonical

STEP_KEYS: tuple[str, ...] = (
    "train/global_step", "global_step", "trainer/global_step", "step", "current_steps", "global_step/max_steps",
    "eval/global_step", "steps", "training_step", "iteration", "iter", "counters/examples", "_step",
)  # fmt: skip
"""Columns that can hold the optimizer step, best first. W&B's `_step` counts log calls, so it comes last."""
EPOCH_KEYS: tuple[str, ...] = ("epoch", "train/epoch", "epochs", "current_epoch")
TOTAL_KEYS: tuple[str, ...] = ("max_steps", "total_steps", "num_training_steps")

LONGEST_KEY = 300
"""Characters; what is longer is no name of a metric."""

_BOOKKEEPING = re.compile(
    r"(?:.*[_/])?(?:runtime|samples_per_second|steps_per_second|steps/second|samples/second|total_flos|percentage|"
    r"elapsed_time|remaining_time|throughput|tokens_per_second(?:_per_gpu)?|memory\(gib\)|train_speed\([^()]*\)|"
    r"_timestamp|timestamp|_runtime|wall.?time|time|eta|examples_per_second|num_input_tokens_seen|"
    r"peak_memory_(?:active|alloc|reserved)|peak_mem|memory/.*|it/s(?:ec)?|tok(?:ens)?/s(?:ec)?|trained_tokens|took|"
    r"model_preparation_time|_wandb.*|_wall_time|index|level_0|unnamed: \d+)",
    re.DOTALL,
)
_SPLIT = re.compile(r"(train(?:ing)?|eval(?:uation)?|validation|val|valid|dev|test|held_?out)([_/.])(.+)", re.DOTALL)
_ERIC = re.compile(r"(rewards|logps|loss|logits|nll)_(train|eval(?:_[\w-]+)?|test)/(.+)")
_LOSS_OF = re.compile(r"loss/(train|eval(?:_[\w-]+)?|test)")
_FIXED = {"eval": "eval", "evaluation": "eval", "validation": "eval", "val": "eval", "valid": "eval", "dev": "eval"}
SPLIT_WORDS = frozenset((*_FIXED, "train", "training", "test"))
"""Words that name a set of pairs and nothing else."""


class Place(NamedTuple):
    """Where a source key goes: a split and our name; `known` is False for a key that is kept under its own name."""

    split: str
    name: str
    known: bool


def clean_key(raw: str) -> str:
    """`rewards / chosen` (notebook tables), `additional_log_x` (H2O) and stray spaces."""
    return re.sub(r"(?<!\s)\s*+/\s*+", "/", raw.strip()).removeprefix("additional_log_")


def is_bookkeeping(raw: str) -> bool:
    """Timing, memory and counters of the log itself: not metrics."""
    key = clean_key(raw).lower()
    if _BOOKKEEPING.fullmatch(key):
        return True
    return key.endswith("num_tokens") and key.startswith(("eval", "valid", "test"))


@lru_cache(maxsize=8192)
def place(raw: str, trainer: str = "any") -> Place | None:
    """Split and name of a source key; None for bookkeeping, or a text that is no name. Evaluation sets by name become
    `eval_<name>`."""
    if len(raw) > LONGEST_KEY or is_bookkeeping(raw):
        return None
    key = clean_key(raw)
    if (name := canonical(key, trainer)) is not None:
        return _placed(name)
    if match := _LOSS_OF.fullmatch(key):
        return Place(_split_name(match.group(1)), "loss", True)
    if match := _ERIC.fullmatch(key):
        name = f"{match.group(1)}/{match.group(3)}"
        mapped = canonical(name)
        return Place(_split_name(match.group(2)), mapped or name, mapped is not None)
    if match := _SPLIT.fullmatch(key):
        word, mark, rest = match.groups()
        if word.lower().startswith("train"):
            if mark == "_" and canonical(rest, trainer) is None:
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
    if (name := canonical(rest, trainer)) is not None:
        return _placed(name, split)
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
        name = canonical(rest[cut + 1 :], trainer)
        if name is not None and cut > 0:
            return _placed(name, f"{split}_{rest[:cut]}")
        start = cut + 1
    return None


def with_split(row: Mapping[str, Any], split: str) -> dict[str, Any]:
    """A row whose `split` column names the set: the split goes into the keys of its metrics."""
    prefix = "" if split.lower().startswith("train") else f"{split}/"
    administrative = ("step", "epoch", "global_step", "current_steps", "total_steps")
    return {k if k in administrative else f"{prefix}{k}": v for k, v in row.items() if k != "split"}
