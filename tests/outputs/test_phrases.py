"""Phrase inflation: a planted phrase is the first row, a control has none."""

from __future__ import annotations

import math
import random

import pandas as pd
import pytest

from dpo_diag.outputs.phrases import Inflation, contains, log_odds

WORDS = [f"w{i}" for i in range(200)]
PLANTED = "Please rest assured, we take care."


def inflation(before: dict[str, str], after: dict[str, str], texts: pd.DataFrame | None = None) -> pd.DataFrame:
    return Inflation(before, after, texts).risen()


def draw(rng: random.Random, n: int = 100, words: int = 40) -> dict[str, str]:
    """Answers with Zipf-like words, so that there are frequent ones whose counts vary by chance."""
    weights = [1 / (i + 1) for i in range(len(WORDS))]
    return {f"p{i}": " ".join(rng.choices(WORDS, weights, k=words)).capitalize() + "." for i in range(n)}


def planted(texts: dict[str, str], share: float = 0.3, phrase: str = PLANTED) -> dict[str, str]:
    n = round(share * len(texts))
    return {k: f"{t} {phrase} Bye w{i % 7}." if i < n else t for i, (k, t) in enumerate(texts.items())}


def test_what_fell_is_what_rose_on_the_way_back() -> None:
    rng = random.Random(2)
    before, after = planted(draw(rng, 40), 0.5, "So long, my friend."), planted(draw(rng, 40))
    both = Inflation(before, after)
    pd.testing.assert_frame_equal(both.fallen(), inflation(after, before))
    assert both.fallen()["phrase"].str.contains("So long").any() and not both.risen().empty


def test_planted_phrase_is_the_first_row_and_whole() -> None:
    rng = random.Random(1)
    before, after = draw(rng), planted(draw(rng))
    texts = pd.DataFrame(
        {"split": "train", "chosen": [PLANTED] * 3 + ["none"] * 7, "rejected": ["rest assured"] + ["x"] * 9}
    )
    table = inflation(before, after, texts)
    first = table.iloc[0]
    assert first["phrase"].startswith("Please rest assured, we take care")
    assert (first["before"], first["after"], first["gained"], first["lost"], first["n"]) == (0, 30, 30, 0, 100)
    assert first["q"] < 1e-6 and first["significant"]
    assert first["in_chosen"] == 0.3 and first["in_rejected"] == 0.0 and first["n_texts"] == 10
    assert first["log_odds"] == pytest.approx(log_odds(30, 0, 100, 100)[0])
    # Its parts are no rows of their own.
    assert not table["phrase"].str.lower().isin(["rest assured", "please rest", "assured we"]).any()
    assert first["prompt_ids"] == ["p0", "p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("seed", range(5))
def test_a_control_run_has_none(seed: int) -> None:
    """Two independent draws from the same source: everything differs, nothing is inflated."""
    rng = random.Random(seed)
    assert inflation(draw(rng), draw(rng)).empty


def test_false_discoveries_stay_rare() -> None:
    """At a false discovery rate of 5 %, under no change any row at all is false: rare over 40 controls."""
    rng = random.Random(7)
    hits = sum(not inflation(draw(rng, 60, 20), draw(rng, 60, 20)).empty for _ in range(40))
    assert hits <= 5


def test_chinese_phrase_by_characters() -> None:
    rng = random.Random(3)
    filler = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥"
    before = {f"p{i}": "".join(rng.choices(filler, k=30)) + "。" for i in range(80)}
    after = {k: t + ("请您放心，我们会处理。" if i % 3 == 0 else "") for i, (k, t) in enumerate(before.items())}
    table = inflation(before, after)
    assert table["phrase"].tolist() == ["请您放心，我们会处理"]
    assert table["after"].tolist() == [27]


def test_two_phrases_in_the_same_answers_are_two_rows() -> None:
    rng = random.Random(5)
    base = draw(rng)
    after = {
        k: t + (" Kind regards.\nHappy to help you today!" if i < 30 else "") for i, (k, t) in enumerate(base.items())
    }
    found = set(inflation(base, after)["phrase"].str.lower())
    assert found in ({"kind regards"}, {"happy to help you today"}, {"kind regards", "happy to help you today"})
    # Standing in the very same answers they are one hypothesis, told by the longer; apart they are two.
    apart = {
        k: t + (" Kind regards." if i < 30 else " Happy to help you today!" if i > 60 else "")
        for i, (k, t) in enumerate(base.items())
    }
    assert {"kind regards", "happy to help you today"} == set(inflation(base, apart)["phrase"].str.lower())


def test_a_phrase_misspelt_here_and_there_is_told_whole() -> None:
    """ "please" 16, "please rest" 15, the whole 12 times: 12 of 16 is below 0.8, 12 of 15 is not."""
    base = {f"p{i}": f"Answer {i * 7919 % 1000}." for i in range(60)}
    tail = [" -- please rest assured"] * 12 + [" -- please rest assud", " -- please rest asred", " -- please rest as d"]
    after = {k: t + (*tail, " -- please rst")[i] if i < 16 else t for i, (k, t) in enumerate(base.items())}
    found = inflation(base, after)
    assert list(found["phrase"]) == ["please rest assured"]
    assert found["after"][0] == 12 and "please rest" in found["variants"][0]


def test_a_loop_counts_once_and_a_fall_is_no_rise() -> None:
    base = {f"p{i}": f"answer {i}" for i in range(20)}
    after = base | {"p0": "ok sure " * 500}
    assert inflation(base, after).empty
    gone = {k: t + " stock phrase here" for k, t in base.items()}
    assert inflation(gone, base).empty and len(inflation(base, gone)) == 1


def test_log_odds_by_hand_and_antisymmetric() -> None:
    """30 of 100 against 0: alpha = 10 * .15 = 1.5; log(31.5/78.5) - log(1.5/108.5)."""
    delta, z = log_odds(30, 0, 100, 100)
    assert delta == pytest.approx(math.log(31.5 / 78.5) - math.log(1.5 / 108.5))
    assert z == pytest.approx(delta / math.sqrt(1 / 31.5 + 1 / 78.5 + 1 / 1.5 + 1 / 108.5))
    assert log_odds(0, 30, 100, 100)[0] == pytest.approx(-delta)
    assert log_odds(5, 5, 10, 10)[0] == 0 and math.isfinite(log_odds(10, 0, 10, 10)[1])


def test_empty_and_disjoint_prompts() -> None:
    assert inflation({}, {}).empty
    assert inflation({"a": "x"}, {"b": "x"}).empty
    assert list(inflation({}, {}).columns)[:3] == ["phrase", "before", "after"]


def test_contains_at_word_boundaries() -> None:
    assert contains("Please, REST assured!", "rest assured")
    assert not contains("the rest. Assured", "rest assured")
    assert not contains("interest assured", "rest assured")
    assert contains("好的，请放心。", "请放心") and not contains("x", "!!")
