"""DVG025: a task score fell beyond its interval."""

from __future__ import annotations

import pytest


def test_it_fell(means, finding):
    """FACTS: .693 -> .417 on 1500 questions."""
    found = finding(means(held={"score/accuracy@held_out": [0.693, 0.417]}, weight=1500), "DVG025")
    assert found["outcome"] == "speaks" and found["severity"] == "error"
    assert found["evidence"]["scores"][0]["change"]["value"] == pytest.approx(-0.276)


def test_three_hundred_questions_cannot_tell(means, finding):
    """An accuracy change seen on 300 questions vanished at 1500: print n and an interval."""
    found = finding(means(held={"score/accuracy@held_out": [0.70, 0.66]}, weight=300), "DVG025")
    assert found["reason"].startswith("cannot tell")


def test_it_rose(means, finding):
    assert finding(means(held={"score/accuracy@held_out": [0.6, 0.65]}, weight=900), "DVG025")["outcome"] == "silent"


def test_no_score(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG025")["outcome"] == "not_applicable"
