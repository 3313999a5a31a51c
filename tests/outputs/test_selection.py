"""What became of an answer, what is read first, and what is left in."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.outputs.selection import counted, outcome, reading_order, selected, wide


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (("a", 1.0), ("b", 0.0), "regression"),
        (("a", 0.0), ("b", 1.0), "gain"),
        (("a", 0.75), ("b", 0.5), "regression"),  # shares of several samples
        (("a", 1.0), ("b", 1.0), "changed"),
        (("a", None), ("b", 0.0), "changed"),  # nobody judged the first one
        (("a", math.nan), ("b", 1.0), "changed"),
        (("a", 0.0), ("a", 0.0), "unchanged"),
        (None, ("a", 1.0), None),
    ],
)
def test_an_outcome_is_told_by_correctness_then_by_text(before: Any, after: Any, named: str | None) -> None:
    def answer(given: Any) -> Any:
        return None if given is None else {"text": given[0], "correct": given[1]}

    assert outcome(answer(before), answer(after)) == named


def entry(name: str, what: str | None, times: int = 0, tags: tuple[str, ...] = (), *texts: str) -> dict[str, Any]:
    looks = [[{"model": "policy", "step": 5 * i}] for i in range(len(texts))]
    answers = [{"text": t, "correct": None, "looks": look} for t, look in zip(texts, looks, strict=True)]
    return {"prompt_id": name, "outcome": what, "times_changed": times, "tags": list(tags), "prompt": f"say {name}",
            "reference": None, "answers": answers}  # fmt: skip


ENTRIES = [
    entry("same", "unchanged", 0, (), "yes"),
    entry("other", "changed", 1, ("x",), "I am sorry", "No"),
    entry("often", "changed", 3, (), "a", "b"),
    entry("better", "gain", 1, ("x",), "a", "b"),
    entry("absent", None),
    entry("worse", "regression", 1, ("x", "y"), "a", "so sorry, I am"),
]


def test_regressions_stand_first_then_gains_then_what_changed_most_often() -> None:
    order = [e["prompt_id"] for e in sorted(ENTRIES, key=reading_order)]
    assert order == ["worse", "better", "often", "other", "same", "absent"]
    assert counted(ENTRIES) == {"regression": 1, "gain": 1, "changed": 2, "unchanged": 1}


def test_filters_join() -> None:
    def names(**asked: Any) -> list[str]:
        return [e["prompt_id"] for e in selected(ENTRIES, **asked)]

    assert len(names()) == 6
    assert names(outcomes=["regression", "gain"]) == ["better", "worse"]
    assert names(outcomes=["regression", "gain"], tag="y") == ["worse"]
    assert names(phrase="i am") == ["other", "worse"] and names(phrase="i am", tag="y") == ["worse"]
    assert names(phrase="am sorry") == ["other"]  # the words must stand together
    assert names(prompts=["often"], tag="x") == []
    with pytest.raises(DiagError, match="no such outcome; got worse; expected one of regression, gain"):
        selected(ENTRIES, outcomes=["worse"])


def test_the_wide_table_holds_each_checkpoints_answer_and_judgement() -> None:
    told = entry("p", "gain", 1, ("x", "y"), "no", "yes")
    told["answers"][1]["correct"] = 1.0
    table = wide([told], {("policy", 0): "first", ("policy", 5): "last", ("ref", 0): "ref"})
    row = table.to_dict("records")[0]
    assert row["tags"] == "x y" and (row["first"], row["last"], row["last correct"]) == ("no", "yes", 1.0)
    assert row["ref"] is None and row["first correct"] is None and list(table)[:2] == ["prompt_id", "outcome"]
    assert list(wide([], {("policy", 0): "first"})) == [*list(table)[:5], "first", "first correct"]
