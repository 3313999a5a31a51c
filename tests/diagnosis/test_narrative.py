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
    """One pair alone is no share, nor are two; shares of a net change that is next to none say nothing; a pair that
    rose by more than the net rise says that others fell: cross-entropies 1 -> 2 and seven times 1 -> 0.99, so exp
    rises by 4.671 and falls by 7 x 0.02705 = 0.189, net 4.482."""
    one = explain(build_run(tmp_path / "one", {0: ([-10.0], [-10.0]), 5: ([-12.0], [-20.0])}))
    assert said(one, 3) == ["The set is one pair.", "p0: chosen cross-entropy 1.000 → 1.200"]
    cancel = explain(build_run(tmp_path / "cancel", {0: ([-10.0] * 2, [-9.0] * 2), 5: ([-12.0, -7.5], [-20.0] * 2)}))
    assert said(cancel, 3)[0].startswith("Chosen ppl_seq_mean hardly changed (log +0.00")
    two = explain(build_run(tmp_path / "two", {0: ([-10.0] * 2, [-9.0] * 2), 5: ([-15.0, -9.0], [-20.0] * 2)}))
    assert said(two, 3)[0] == "2 pairs, too few for shares of the rise of chosen ppl_seq_mean to mean anything."
    sums = {0: ([-10.0] * 8, [-9.0] * 8), 5: ([-20.0, *[-9.9] * 7], [-20.0] * 8)}
    assert said(explain(build_run(tmp_path / "mixed", sums)), 3)[0] == (
        "1 of 8 pairs carry 104 % of the net rise of chosen ppl_seq_mean; the others together fell."
    )


def test_few_pairs_are_counted_and_not_shared(tmp_path: Path) -> None:
    """Of two pairs one fell on both sides and one on the rejected side alone: counts; of eight pairs shares."""
    for n, told in (
        (1, "in 1 of 2 pairs, only the rejected one in 1,"),
        (4, "in 50 % of the pairs, only the rejected"),
    ):
        sums = {0: ([-10.0] * 2 * n, [-9.0] * 2 * n), 5: ([-15.0, -9.0] * n, [-20.0] * 2 * n)}
        text = " ".join(said(explain(build_run(tmp_path / str(n), sums)), 0))
        assert f"Both answers became less likely {told}" in text


def logged(path: Path, rows: dict[str, list[float]]) -> dict[str, Any]:
    """The explanation of a log of training rows, ten steps apart."""
    writer = RunWriter(path, kind="imported")
    for name, values in rows.items():
        of = [{"step": 10 * (i + 1), "split": "train", "name": name, "value": v} for i, v in enumerate(values)]
        writer.write("history", of, name.replace("/", "-"))
    writer.finish()
    return explain(path)


def test_withheld_means_are_in_no_sentence(tmp_path: Path) -> None:
    """Accuracies of 3.2 are sums over 4 micro-batches (DVG028), so the loss and the rewards beside them are too."""
    margins = [0.0646, 0.187, 0.3105, 0.4346, 0.5588, 0.6833]
    document = logged(tmp_path / "run", {
        "loss": [2.7402, 2.6794, 2.6198, 2.5614, 2.5041, 2.448], "rewards/chosen": [m / 2 for m in margins],
        "rewards/margins": margins, "rewards/accuracies": [3.2] * 6,
    })  # fmt: skip
    assert {"loss", "rewards/chosen"} <= set(document["means"]["withheld"])
    assert document["loss"] == {"not_applicable": "the logged loss of train is implausible, see DVG028"}
    text = " ".join([*said(document, 0), *said(document, 1)])
    assert "the loss is not known (the logged loss of train is implausible, see DVG028)" in text
    assert "rewards/chosen" not in text and "Change of" not in text


def test_a_change_of_rounding_is_unchanged_and_one_inside_its_noise_says_so(tmp_path: Path) -> None:
    """Chosen's first and last three rows are alike but for 6e-9; the loss's 0.01 is less than its rows scatter."""
    chosen = [-0.21, -0.19, -0.2, -0.21 + 1.8e-8, -0.19, -0.2]
    document = logged(tmp_path / "run", {"loss": [0.7, 0.6, 0.7, 0.6, 0.71, 0.72], "logps/chosen": chosen})
    assert "The mean logps/chosen is unchanged (99 % interval" in " ".join(said(document, 1))
    assert "the loss rose 0.6667 → 0.6767, inside its noise, from the mean of the first 3 rows" in said(document, 0)[1]


def test_one_row_is_no_course(tmp_path: Path) -> None:
    document = logged(tmp_path / "run", {"loss": [0.6931], "rewards/chosen": [0.0]})
    assert "On train the loss is 0.6931 in the only row, step 10." in said(document, 0)
    assert "The logged mean rewards/chosen is 0 in the only row, step 10." in said(document, 0)


def test_of_few_rows_the_headline_says_how_few(tmp_path: Path) -> None:
    """Five rows, the reward to -140: what they show is the headline, and that their noise is not known."""
    chosen = [0.0, -3.0, -20.0, -80.0, -140.0]
    rows = {
        "loss": [0.693, 0.01, 0.001, 0.0, 0.0],
        "rewards/chosen": chosen,
        "rewards/rejected": [3 * c for c in chosen],
    }
    text = logged(tmp_path / "run", rows)["verdict"]["text"]
    assert text.startswith(
        "The loss fell while the chosen answers became less likely, as far as 5 rows can show: their noise is not "
        "known."
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
    sum is -4: -5 at the first difference and +1 before it, in nats, since the parts cancel."""
    tokens = {"p0": ([1, 5, 2], [1, 6, 2]), "p1": ([1, 5, 2], [1, 6, 2])}
    before = {p: ([-1.0, -1.0, -0.5], [-1.0, -1.0, -0.5]) for p in tokens}
    after = {p: ([-0.5, -3.5, -0.5], [-0.5, -4.0, -0.5]) for p in tokens}
    run = build_token_run(tmp_path / "run", tokens, {0: before, 5: after})
    writer = RunWriter(tmp_path / "run", resume_step=5)
    for step, total in ((0, -2.5), (5, -4.5)):
        writer.write("pairs", pair_rows(step, [total], [total], 3, ids=["p2"]), split="more")
    document = explain(load_run(run.path))
    text = next(t for t in said(document, 2) if t.startswith("Of the chosen answers'"))
    assert "change of -4 nats (2 of 3 pairs with token records at both steps), -5 at the first token" in text
    assert "+1 in the beginning that both answers share (33 % of the tokens)." in text
    assert "all of it and more is there (125 %: the tokens before it rose)" in " ".join(said(document, 2))


def test_a_smoothed_loss_names_its_floor(tmp_path: Path) -> None:
    """Smoothing 0.1: the entropy of (0.9, 0.1), 0.3251 nats, at a margin of log 9 = 2.197; DPO itself has none."""
    sums = {0: ([-10.0] * 2, [-9.0] * 2), 5: ([-12.0, -8.0], [-20.0] * 2)}
    floor = "With label smoothing this loss cannot fall below 0.3251, at a margin of 2.197; beyond it, it rises."
    smoothed = build_run(tmp_path / "cdpo", sums, loss={"types": ["cdpo"], "beta": 0.1, "label_smoothing": 0.1})
    assert floor in said(explain(smoothed), 2)
    assert floor not in said(explain(build_run(tmp_path / "dpo", sums)), 2)
