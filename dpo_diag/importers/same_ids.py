"""Rows of a table of pairs that say one pair_id at one step: one row twice, a step written again, or several pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.records.given_ids import GivenIds, same_id_note

_KEY = ["step", "split", "pair_id"]
_LENGTHS = ["chosen_n_tokens", "rejected_n_tokens"]


def told_apart(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The rows in their order, exact repeats left out, with an id for each of several pairs that share one.

    Several pairs share an id where the rows of one step differ in their responses' numbers of tokens, or where every
    step holds the id several times, equally often, in adjoining rows: their order tells them apart then. A row that
    comes again later, after rows of other steps, is a step written again (a resumed run) and keeps its id.

    Returns: the rows, and split -> ids that were shared.
    """
    repeated = frame.duplicated(_KEY, keep=False)
    if not repeated.any():
        return frame, {}
    block = (frame[["step", "split"]] != frame[["step", "split"]].shift()).any(axis=1).cumsum()
    frame = frame.assign(_block=block)[~frame.assign(_block=block).duplicated()]
    shared: dict[str, list[str]] = {}
    lengths = [name for name in _LENGTHS if name in frame]
    suspects = frame.loc[frame.duplicated(_KEY), ["split", "pair_id"]].drop_duplicates()
    groups = dict(list(frame.groupby(["split", "pair_id"], sort=False, observed=True)))
    ids = frame["pair_id"].copy()
    for split, pair_id in suspects.itertuples(index=False):
        rows = groups[split, pair_id]
        number = _numbers(rows, lengths)
        if number.nunique() > 1:
            shared.setdefault(str(split), []).append(str(pair_id))
            ids.update(pd.Series([pair_id if n == 0 else f"{pair_id}#{n + 1}" for n in number], index=number.index))
    return frame.assign(pair_id=ids).drop(columns="_block"), shared


def _numbers(rows: pd.DataFrame, lengths: list[str]) -> pd.Series[int]:
    """Which of the pairs behind one id each row is: 0 for all where they are one pair."""
    by_length = (
        rows.groupby(lengths, dropna=False, sort=False, observed=True).ngroup()
        if lengths
        else pd.Series(0, index=rows.index)
    )
    if rows.assign(_n=by_length).groupby("step", observed=True)["_n"].nunique().max() == 1:
        by_length[:] = 0  # its length changes from step to step at most: another tokenizer, another cut
    table = rows.assign(_n=by_length)
    steady = (
        table.groupby(["_n", "_block"], observed=True)
        .size()
        .groupby("_n", observed=True)
        .transform("nunique")
        .groupby("_n", observed=True)
        .first()
        == 1
    )
    table["_order"] = table.groupby(["_n", "_block"], observed=True).cumcount().where(table["_n"].map(steady), 0)
    return table.groupby(["_n", "_order"], sort=False, observed=True).ngroup()


def facts_of(
    given: Mapping[str, GivenIds], shared: Mapping[str, list[str]], frame: pd.DataFrame
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(split -> fields of its SplitInfo, notes) on the ids that stood for several pairs.

    Args:
        given: split -> ids whose pairs their texts told apart.
        shared: split -> ids whose pairs lengths and order told apart; `frame` has their new ids.
    """
    facts = {split: known.facts() for split, known in given.items() if known.facts()}
    notes = [f"{split}: {note}" for split, known in given.items() if (note := known.note())]
    for split, ids in shared.items():
        first = frame.loc[frame["split"] == split, "pair_id"].astype(str)
        n = first[first.str.rpartition("#")[0].isin(ids) | first.isin(ids)].nunique()
        facts[split] = {"n_same_id": n + facts.get(split, {}).get("n_same_id", 0), "told_apart_by": "order"}
        what_now = "their order tells them apart; the sums are of all, a pair's own path is a guess"
        note = same_id_note(ids, n, what_now)
        notes.append(f"{split}: {note}")
    return facts, notes
