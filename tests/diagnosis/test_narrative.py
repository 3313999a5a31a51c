"""What the narrative says of runs with little to say, and what it must not say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from builders import build_run, build_token_run, pair_rows

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis import explain


def said(document: dict[str, Any], heading: int) -> list[str]:
    return [s["text"] for s in document["narrative"][heading]["sentences"]]


def test_which_pairs_says_what_a_share_can_say(tmp_path: Path) -> None:
    """One pair alone is no share; shares of a net change that is next to none say nothing; a pair that rose more than
    the net rise says that others fell: cross-entropies 1 -> 1.5 and 1 -> 0.9, exp 4.48 and 2.46, net 1.5 of 1.76."""
    one = explain(build_run(tmp_path / "one", {0: ([-10.0], [-10.0]), 5: ([-12.0], [-20.0])}))
    assert said(one, 3) == ["The set is one pair.", "p0: chosen cross-entropy 1 → 1.200"]
    cancel = explain(build_run(tmp_path / "cancel", {0: ([-10.0] * 2, [-9.0] * 2), 5: ([-12.0, -7.5], [-20.0] * 2)}))
    assert said(cancel, 3)[0].startswith("Chosen ppl_seq_mean hardly changed (log +0.00")
    mixed = explain(build_run(tmp_path / "mixed", {0: ([-10.0] * 2, [-9.0] * 2), 5: ([-15.0, -9.0], [-20.0] * 2)}))
    assert said(mixed, 3)[0] == (
        "1 of 2 pairs carry 117 % of the net rise of chosen ppl_seq_mean; the others together fell."
    )


def test_nothing_is_said_of_terms_that_are_rounding(tmp_path: Path) -> None:
    """All answers move alike: no dispersion (its sum is -1e-16), so no sentence about the answers' distance; where
    nothing moves at all there is no cause and no interval."""
    moved = explain(
        build_run(tmp_path / "a", {0: ([-10.0, -11.0] * 6, [-9.0] * 12), 5: ([-12.0, -13.0] * 6, [-20.0] * 12)})
    )
    (text,) = (t for t in said(moved, 2) if "ppl_seq_mean" in t)
    assert text == "Chosen log ppl_seq_mean changed by +0.200: +0.200 because answers became less likely on average."
    still = explain(
        build_run(tmp_path / "b", {0: ([-10.0, -11.0] * 6, [-9.0] * 12), 5: ([-10.0, -11.0] * 6, [-9.0] * 12)})
    )
    assert not [t for t in said(still, 1) + said(still, 2) if t.startswith(("Change of", "Chosen log", "Of the loss"))]


def test_broken_numbers_are_not_told_to_measure_a_task(tmp_path: Path) -> None:
    nan = [math.nan] * 4
    document = explain(build_run(tmp_path / "run", {0: ([-10.0] * 4, [-9.0] * 4), 5: (nan, nan)}))
    assert said(document, 3) == ["No pair has finite log-probs at both steps."]
    assert all(text.startswith("DVG011") for text in said(document, 4))


def test_a_share_of_tokens_says_whose_and_what_is_left(tmp_path: Path) -> None:
    """Two of three pairs have tokens. Chosen: the prefix rises by 0.5 in each, the differing token falls by 2.5: the
    sum is -4, of which 125 % is at the first difference and -25 % before it."""
    tokens = {"p0": ([1, 5, 2], [1, 6, 2]), "p1": ([1, 5, 2], [1, 6, 2])}
    before = {p: ([-1.0, -1.0, -0.5], [-1.0, -1.0, -0.5]) for p in tokens}
    after = {p: ([-0.5, -3.5, -0.5], [-0.5, -4.0, -0.5]) for p in tokens}
    run = build_token_run(tmp_path / "run", tokens, {0: before, 5: after})
    writer = RunWriter(tmp_path / "run", resume_step=5)
    for step, total in ((0, -2.5), (5, -4.5)):
        writer.write("pairs", pair_rows(step, [total], [total], 3, ids=["p2"]), split="more")
    document = explain(load_run(run.path))
    text = next(t for t in said(document, 2) if t.startswith("Of the chosen answers'"))
    assert "change of -4 nats (2 of 3 pairs with token records at both steps), 125 % is at the first token" in text
    assert "-25 % is in the beginning that both answers share (33 % of the tokens)" in text
    assert "all of it and more is there (125 %: the tokens before it rose)" in " ".join(said(document, 2))
