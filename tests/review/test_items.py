"""Which answers are shown: the same for everyone, differing ones, balanced over checkpoints, sides by coin toss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter, load_run
from dpo_diag.review.items import choose_items, differing
from tests.review.builders import FIRST, LAST, REFERENCE, make_run, output_rows


def test_default_is_the_reference_against_the_last_step(run_path: Path) -> None:
    items = choose_items(load_run(run_path))
    assert {(i.a, i.b) for i in items} == {(REFERENCE, LAST)}
    assert len(items) == 20
    assert all(i.a_text != i.b_text for i in items)
    # Of 30 prompts every fifth is unchanged.
    assert len(choose_items(load_run(run_path), n=100)) == 24
    assert len(choose_items(load_run(run_path), n=100, same=True)) == 30


def test_a_larger_review_continues_a_smaller_one_and_the_order_of_names_does_not_matter(run_path: Path) -> None:
    run = load_run(run_path)
    assert choose_items(run, n=7) == choose_items(run, n=20)[:7]
    assert choose_items(run, a="0", b="40") == choose_items(run, a="40", b="0")
    other = choose_items(run, a="20", b="40", n=100)
    assert [i.prompt_id for i in other if i.prompt_id != "p17"] == [i.prompt_id for i in choose_items(run, n=100) if i.prompt_id != "p17"]  # fmt: skip # noqa: E501
    assert [i.id for i in choose_items(run, seed=1)] != [i.id for i in choose_items(run)]


def test_all_checkpoints_are_compared_about_equally_often(run_path: Path) -> None:
    run = load_run(run_path)
    items = choose_items(run, every=True, n=20)
    counts = Counter((i.a, i.b) for i in items)
    # 6 pairs of 4 checkpoints, but ref and the first step never differ: 5 pairs, 4 times each.
    assert (REFERENCE, FIRST) not in counts
    assert sorted(counts.values()) == [4] * 5
    assert len({i.id for i in items}) == 20
    # Later prompts come round again with the pairs that are left: nearly even.
    later = Counter((i.a, i.b) for i in choose_items(run, every=True, n=60)).values()
    assert max(later) - min(later) <= 3
    assert len(choose_items(run, every=True, n=10_000)) == 5 * 24


def test_sides_are_a_fair_coin_per_reviewer_and_item(tmp_path: Path) -> None:
    items = choose_items(load_run(make_run(tmp_path / "big", n=500)), n=400)
    for reviewer in ("ann", "ben"):
        share = sum(i.left(reviewer) == "a" for i in items) / len(items)
        assert abs(share - 0.5) < 4 * 0.5 / 400**0.5
    same = sum(i.left("ann") == i.left("ben") for i in items) / len(items)
    assert abs(same - 0.5) < 4 * 0.5 / 400**0.5
    assert [i.left("ann") for i in items] == [i.left("ann") for i in items]


def test_another_text_is_another_item(run_path: Path) -> None:
    before = {i.prompt_id: i.id for i in choose_items(load_run(run_path), n=24)}
    rows = [r for r in output_rows() if r["model"] == "policy" and r["step"] == 40]
    rows[1]["text"] = "another answer"
    RunWriter(run_path, kind="trained", resume_step=10**9).write("outputs", rows, split="policy")
    after = {i.prompt_id: i.id for i in choose_items(load_run(run_path), n=24)}
    assert [p for p in before if before[p] != after[p]] == ["p01"]


def test_different_decoding_is_refused_but_only_between_the_checkpoints_compared(run_path: Path) -> None:
    rows = [{**r, "decoding_hash": "d1"} for r in output_rows() if r["model"] == "policy" and r["step"] == 40]
    RunWriter(run_path, kind="trained", resume_step=10**9).write("outputs", rows, split="policy")
    with pytest.raises(DiagError, match="different decoding settings"):
        choose_items(load_run(run_path))
    assert len(choose_items(load_run(run_path), a="ref", b="20")) == 20


def test_mistakes_are_named(run_path: Path, tmp_path: Path) -> None:
    run = load_run(run_path)
    with pytest.raises(DiagError, match="expected one of ref, 0, 20, 40"):
        choose_items(run, a="30")
    with pytest.raises(DiagError, match="compared with itself"):
        choose_items(run, a="40", b="40")
    with pytest.raises(DiagError, match="no two answers differ"):
        choose_items(run, a="ref", b="0")
    with pytest.raises(DiagError, match="nothing to review"):
        choose_items(run, n=0)
    RunWriter(tmp_path / "empty", kind="trained").finish()
    with pytest.raises(DiagError, match="no answers to fixed prompts"):
        choose_items(load_run(tmp_path / "empty"))


def test_how_many_answers_differ(run_path: Path) -> None:
    run = load_run(run_path)
    assert differing(run, REFERENCE, LAST, 0) == (24, 30)
    assert differing(run, REFERENCE, FIRST, 0) == (0, 30)
    assert differing(run, REFERENCE, LAST, 7) is None
