"""What an evaluation set's pairs are to the training: as the caller says, else as its pairs say, else by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from datasets import Dataset

from dpo_diag.errors import DiagError
from dpo_diag.records.schemas import EVAL_SPLIT
from dpo_diag.records.splits import ROLES, Role, role_from_name
from dpo_diag.thresholds import defaults
from dpo_diag.training.batch import Batch
from dpo_diag.training.pair_ids import KEY, unpack_id


class EvalRoles:
    """The roles of one trainer's evaluation sets.

    Args:
        given: set's name -> its role; "" is the only set, which has no name.
        training_set: gives the prepared training set, whose ids are read when first asked for.

    Raises:
        DiagError: no such role.
    """

    def __init__(self, given: Mapping[str, Role] | None, training_set: Callable[[], Any]) -> None:
        self._given = {_split(name): role for name, role in (given or {}).items()}
        self._training_set = training_set
        known = [role for role in ROLES if role != "train"]
        if wrong := [role for role in self._given.values() if role not in known]:
            raise DiagError("unknown role", where="eval_roles", got=wrong[0], expected=f"one of {', '.join(known)}")

    @cached_property
    def _trained(self) -> frozenset[str] | None:
        """Ids of the training pairs; None where they are not known before training (streams, SFT)."""
        dataset = self._training_set()
        if not isinstance(dataset, Dataset) or KEY not in dataset.column_names:
            return None
        ids = {row[0] for row in dataset.with_format(None)[KEY]}
        return None if 0 in ids else frozenset(map(unpack_id, ids))

    def of(self, split: str, rows: Batch) -> tuple[Role, dict[str, Any]]:
        """(role, further fields of SplitInfo) of a split that holds these pairs."""
        ids = set(rows.pair_ids)
        facts: dict[str, Any] = {}
        if self._trained is not None and rows.has_pairs:
            shared = len(ids & self._trained)
            # Without a row the id may be one of tokens, which no text of the training set has.
            if shared or (rows.rows >= 0).any():
                facts["in_training"] = shared
        if split in self._given:
            return self._given[split], facts | {"role_from": "given"}
        if "in_training" in facts:
            role: Role = (
                "train_probe" if facts["in_training"] > defaults()["roles.probe_share"] * len(ids) else "held_out"
            )
            return role, facts | {"role_from": "pairs"}
        return role_from_name(split), {"role_from": "name"}


def _split(name: str) -> str:
    return name if name == EVAL_SPLIT or name.startswith(f"{EVAL_SPLIT}_") else f"{EVAL_SPLIT}_{name}".rstrip("_")
