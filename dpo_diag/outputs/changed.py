"""Did the answer change: since the checkpoint before, the first one, the reference, the SFT model; where; how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dpo_diag.outputs.answers import REFERENCE, SFT, Answers, Checkpoint, columns_of
from dpo_diag.outputs.diff import first_difference
from dpo_diag.outputs.words import words
from dpo_diag.stats import proportion

SINCE = ("previous", "first", "reference", "sft")


def compared_with(answers: Answers, checkpoint: Checkpoint) -> dict[str, Checkpoint | None]:
    """The checkpoints that one is held against, by the names of `SINCE`; None where there is none."""
    own = answers.policy_checkpoints()
    place = own.index(checkpoint) if checkpoint in own else None
    by_model = {c.model: c for c in answers.checkpoints}
    others = {
        "previous": own[place - 1] if place else None,
        "first": own[0] if place else None,
        "reference": by_model.get(REFERENCE),
        "sft": by_model.get(SFT),
    }
    return {name: other if other != checkpoint else None for name, other in others.items()}


def answer_changes(answers: Answers) -> pd.DataFrame:
    """One row per answer of each checkpoint, in the order of checkpoints and prompts.

    Columns: model, step, prompt_id; per name in `SINCE`: changed_<name> (True/False, null without such an answer);
    first_diff (index of the first new token that differs from the previous checkpoint's; of the first word where token
    ids are unknown; null if unchanged or first), n_words, words_since_previous (difference).
    """
    rows = []
    by_checkpoint = {c: answers.of(c).to_dict("index") for c in answers.checkpoints}
    for checkpoint, own in by_checkpoint.items():
        others = {n: by_checkpoint[c] if c else {} for n, c in compared_with(answers, checkpoint).items()}
        for prompt_id, row in own.items():
            old = {name: other.get(prompt_id) for name, other in others.items()}
            previous, n_words = old["previous"], len(words(row["text"]))
            rows.append(
                {
                    **checkpoint._asdict(), "prompt_id": prompt_id,
                    **{f"changed_{n}": None if o is None else o["text"] != row["text"] for n, o in old.items()},
                    "first_diff": None if previous is None else _first_difference(previous, row),
                    "n_words": n_words,
                    "words_since_previous": None if previous is None else n_words - len(words(previous["text"])),
                }
            )  # fmt: skip
    changed = [f"changed_{name}" for name in SINCE]
    columns = ["model", "step", "prompt_id", *changed, "first_diff", "n_words", "words_since_previous"]
    types = dict.fromkeys(changed, "boolean") | dict.fromkeys(("first_diff", "words_since_previous"), "Int64")
    return pd.DataFrame(rows, columns=columns).astype(types)


def _first_difference(old: Any, new: Any) -> int | None:
    if old["text"] == new["text"]:
        return None
    ids = [_token_ids(row) for row in (old, new)]
    if any(x is None for x in ids):
        return first_difference(words(old["text"]), words(new["text"]))
    return first_difference(ids[0] or [], ids[1] or [])


def _token_ids(row: Any) -> Sequence[int] | None:
    ids = row.get("token_ids")
    return None if ids is None or (isinstance(ids, float) and math.isnan(ids)) else list(ids)


def change_table(changes: pd.DataFrame) -> pd.DataFrame:
    """Per checkpoint and name in `SINCE`: n compared, n changed, share, Wilson 95 % interval; no row for n = 0."""
    rows = []
    for _, own in changes.groupby(["model", "step"], sort=False):
        checkpoint = {"model": own["model"].iloc[0], "step": int(own["step"].iloc[0])}
        for name in SINCE:
            known = own[f"changed_{name}"].dropna()
            if len(known):
                share = columns_of(proportion(int(known.sum()), len(known)))
                rows.append({**checkpoint, "since": name, "changed": int(known.sum()),
                             "share": share.pop("value"), **share})  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "step", "since", "n", "changed", "share", "low", "high"])
