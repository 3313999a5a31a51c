"""Did the answer change: since the look before, the first one, the reference, the SFT model; where; how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dpo_diag.outputs.diff import first_difference
from dpo_diag.outputs.looks import REFERENCE, SFT, Answers, Look
from dpo_diag.outputs.words import words
from dpo_diag.records.metrics import wilson_interval

SINCE = ("previous", "first", "reference", "sft")


def against(answers: Answers, look: Look) -> dict[str, Look | None]:
    """The looks that `look` is held against, by the names of `SINCE`; None where there is none."""
    own = answers.policy_looks()
    place = own.index(look) if look in own else None
    by_model = {x.model: x for x in answers.looks}
    found: dict[str, Look | None] = {
        "previous": own[place - 1] if place else None,
        "first": own[0] if place else None,
        "reference": by_model.get(REFERENCE),
        "sft": by_model.get(SFT),
    }
    return {name: other if other != look else None for name, other in found.items()}


def _tokens(row: Any) -> Sequence[int] | Sequence[str]:
    ids = row.get("token_ids")
    return list(ids) if ids is not None and not (isinstance(ids, float) and math.isnan(ids)) else words(row["text"])


def answer_changes(answers: Answers) -> pd.DataFrame:
    """One row per answer of each look, in the order of looks and prompts.

    Columns: model, step, prompt_id; per name in `SINCE`: changed_<name> (True/False, null without such an answer);
    first_diff (index of the first new token that differs from the previous look's; of the first word where token ids
    are unknown; null if unchanged or first), n_words, words_since_previous (difference).
    """
    rows = []
    tables = {look: answers.of(look).to_dict("index") for look in answers.looks}
    for look in answers.looks:
        others = against(answers, look)
        for prompt_id, row in tables[look].items():
            entry: dict[str, Any] = {"model": look.model, "step": look.step, "prompt_id": prompt_id}
            for name, other in others.items():
                old = tables[other].get(prompt_id) if other is not None else None
                entry[f"changed_{name}"] = None if old is None else old["text"] != row["text"]
            previous = others["previous"]
            old = tables[previous].get(prompt_id) if previous is not None else None
            same = old is None or old["text"] == row["text"]
            entry["first_diff"] = None if same or old is None else _first(old, row)
            entry["n_words"] = len(words(row["text"]))
            entry["words_since_previous"] = None if old is None else entry["n_words"] - len(words(old["text"]))
            rows.append(entry)
    columns = ["model", "step", "prompt_id", *(f"changed_{n}" for n in SINCE), "first_diff", "n_words"]
    frame = pd.DataFrame(rows, columns=[*columns, "words_since_previous"])
    for name in SINCE:
        frame[f"changed_{name}"] = frame[f"changed_{name}"].astype("boolean")
    for name in ("first_diff", "words_since_previous"):
        frame[name] = frame[name].astype("Int64")
    return frame


def _first(old: Any, new: Any) -> int | None:
    a, b = _tokens(old), _tokens(new)
    if a and b and isinstance(a[0], str) != isinstance(b[0], str):
        a, b = words(old["text"]), words(new["text"])
    return first_difference(a, b)


def change_table(changes: pd.DataFrame) -> pd.DataFrame:
    """Per look and name in `SINCE`: n compared, n changed, share, Wilson 95 % interval; no row for n = 0."""
    rows = []
    for (model, step), own in changes.groupby(["model", "step"], sort=False):
        for name in SINCE:
            known = own[f"changed_{name}"].dropna()
            if len(known):
                n, k = len(known), int(known.sum())
                low, high = wilson_interval(k, n)
                rows.append(
                    {"model": model, "step": int(step), "since": name, "n": n, "changed": k,
                     "share": k / n, "low": low, "high": high}
                )  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "step", "since", "n", "changed", "share", "low", "high"])
