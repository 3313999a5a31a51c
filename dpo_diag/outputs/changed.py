"""Did the answer change: since the checkpoint before, the first one, the reference, the SFT model; where; how much."""

from __future__ import annotations

from collections import defaultdict
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
    rows: dict[str, list[Any]] = defaultdict(list)
    texts = {c: answers.texts(c) for c in answers.checkpoints}
    tokens = {c: _token_ids(answers.of(c)) for c in answers.checkpoints}
    for checkpoint, own in texts.items():
        others = compared_with(answers, checkpoint)
        for name, other in others.items():
            old = texts[other] if other else {}
            rows[f"changed_{name}"] += [None if (o := old.get(p)) is None else o != text for p, text in own.items()]
        before = others["previous"]
        old, old_tokens = (texts[before], tokens[before]) if before else ({}, {})
        n_words = [len(words(text)) for text in own.values()]
        rows["model"] += [checkpoint.model] * len(own)
        rows["step"] += [checkpoint.step] * len(own)
        rows["prompt_id"] += own
        rows["first_diff"] += [
            None if (o := old.get(p)) is None or o == text else _first_difference(
                (o, old_tokens.get(p)), (text, tokens[checkpoint].get(p))
            )
            for p, text in own.items()
        ]  # fmt: skip
        rows["n_words"] += n_words
        rows["words_since_previous"] += [
            None if (o := old.get(p)) is None else n - len(words(o)) for p, n in zip(own, n_words, strict=True)
        ]
    changed = [f"changed_{name}" for name in SINCE]
    columns = ["model", "step", "prompt_id", *changed, "first_diff", "n_words", "words_since_previous"]
    types = dict.fromkeys(changed, "boolean") | dict.fromkeys(("first_diff", "words_since_previous"), "Int64")
    return pd.DataFrame(rows, columns=columns).astype(types)


def _first_difference(old: tuple[str, Any], new: tuple[str, Any]) -> int | None:
    """Of two answers that differ, each its text and its token ids."""
    if old[1] is None or new[1] is None:
        return first_difference(words(old[0]), words(new[0]))
    return first_difference(list(old[1]), list(new[1]))


def _token_ids(rows: pd.DataFrame) -> dict[str, Any]:
    """prompt_id -> token ids, where they are recorded."""
    if "token_ids" not in rows:
        return {}
    known = zip(rows.index, rows["token_ids"], strict=True)
    return {str(p): ids for p, ids in known if ids is not None and not isinstance(ids, float)}


def change_table(changes: pd.DataFrame) -> pd.DataFrame:
    """Per checkpoint and name in `SINCE`: n compared, n changed, share, Wilson 95 % interval; no row for n = 0."""
    rows = []
    for _, own in changes.groupby(["model", "step"], sort=False, observed=True):
        checkpoint = {"model": own["model"].iloc[0], "step": int(own["step"].iloc[0])}
        for name in SINCE:
            known = own[f"changed_{name}"].dropna()
            if len(known):
                share = columns_of(proportion(int(known.sum()), len(known)))
                rows.append({**checkpoint, "since": name, "changed": int(known.sum()),
                             "share": share.pop("value"), **share})  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "step", "since", "n", "changed", "share", "low", "high"])
