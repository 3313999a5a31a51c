"""DVG014: contradictions, repeats, leaks."""

from __future__ import annotations

import pytest


def text(i: int, prompt: str, chosen: str, rejected: str, split: str = "eval") -> dict[str, str]:
    return {"split": split, "pair_id": f"t{i}", "prompt": prompt, "chosen": chosen, "rejected": rejected}


BASE = {0: ([-10.0] * 4, -10.0), 5: (-9.0, -12.0)}


def test_preferred_both_ways(pairs, finding):
    run = pairs(BASE, texts=[text(0, "p", "yes", "no"), text(1, "p", "No ", "yes"), text(2, "q", "a", "b")])
    found = finding(run, "DVG014")
    assert found["outcome"] == "speaks" and set(found["evidence"]["preferred_both_ways"]) == {"t0", "t1"}


def test_the_same_pair_twice_up_to_spaces(pairs, finding):
    run = pairs(BASE, texts=[text(0, "p", "yes", "no"), text(1, "p ", "Yes", " no"), text(2, "q", "a", "b")])
    found = finding(run, "DVG014")
    assert found["outcome"] == "speaks" and set(found["evidence"]["duplicates"]) == {"t0", "t1"}


def test_equal_sides(pairs, finding):
    found = finding(pairs(BASE, texts=[text(0, "p", "yes", "yes"), text(1, "q", "a", "b")]), "DVG014")
    assert found["outcome"] == "speaks" and found["evidence"]["chosen_equals_rejected"] == ["t0"]


def test_a_training_pair_is_held_out(pairs, finding):
    run = pairs(BASE, texts=[text(0, "p", "yes", "no"), text(1, "p", "yes", "no", "train"), text(2, "q", "a", "b")])
    found = finding(run, "DVG014")
    assert found["outcome"] == "speaks" and found["evidence"]["train_pairs_held_out"] == ["t0"]


@pytest.mark.parametrize(("role_from", "outcome"), [("pairs", "speaks"), ("given", "silent")])
def test_a_probe_that_nobody_named_may_be_a_leak(pairs, finding, role_from, outcome):
    """The evaluation set's pairs are all training pairs: said by the caller that is a probe, found by its pairs it may
    as well be a held-out set that leaked."""
    texts = [text(0, "p", "yes", "no"), text(1, "q", "a", "b", split="train"), text(0, "p", "yes", "no", split="train")]
    splits = {"eval": {"role": "train_probe", "role_from": role_from}, "train": {"role": "train"}}
    assert finding(pairs(BASE, texts=texts, splits=splits), "DVG014")["outcome"] == outcome


def test_pairs_that_differ_in_what_no_text_shows(pairs, finding):
    """Two images under one question, and one question whose two answers swap with its tools: no repeat, no
    contradiction; the same image twice is one."""
    rows = [text(0, "p", "yes", "no"), text(1, "p", "yes", "no"), text(2, "q", "a", "b"), text(3, "q", "b", "a")]
    beside = ["image 1", "image 2", "tools", None]
    run = pairs(BASE, texts=[row | {"beside": b} for row, b in zip(rows, beside, strict=True)])
    assert finding(run, "DVG014")["outcome"] == "silent"


def test_the_same_image_twice_is_a_repeat(pairs, finding):
    rows = [text(i, "p", "yes", "no") | {"beside": "image 1"} for i in range(2)]
    assert set(finding(pairs(BASE, texts=rows), "DVG014")["evidence"]["duplicates"]) == {"t0", "t1"}


def test_clean_data(pairs, finding):
    run = pairs(BASE, texts=[text(i, f"p{i}", f"yes {i}", f"no {i}", ("train", "eval")[i % 2]) for i in range(6)])
    assert finding(run, "DVG014")["outcome"] == "silent"


def test_unknown(pairs, finding):
    assert finding(pairs(BASE), "DVG014")["outcome"] == "not_applicable"
