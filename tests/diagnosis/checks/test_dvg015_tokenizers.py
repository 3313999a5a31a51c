"""DVG015: token perplexities of two tokenizers are refused; bits per byte are offered."""

from __future__ import annotations

import math

import pytest


def test_the_same_responses_counted_differently(pairs, finding):
    run = pairs({0: ([-10.0] * 5, -10.0), 5: (-9.0, -12.0)}, columns={"n_tokens": {5: (13, 13)}})
    found = finding(run, "DVG015")
    assert found["outcome"] == "speaks" and found["severity"] == "error"
    assert found["evidence"]["responses_counted_differently"] == 1.0
    # 10 nats over 40 bytes, then 9
    assert found["evidence"]["bits_per_byte"]["eval@0"] == pytest.approx(10 / (40 * math.log(2)))
    assert found["evidence"]["bits_per_byte"]["eval@5"] == pytest.approx(9 / (40 * math.log(2)))


def test_one_tokenizer(pairs, finding):
    assert finding(pairs({0: ([-10.0] * 5, -10.0), 5: (-9.0, -12.0)}), "DVG015")["outcome"] == "silent"


def test_the_reference_has_another(pairs, finding):
    run = pairs({0: ([-10.0] * 5, -10.0), 5: (-9.0, -12.0)}, tokenizer={"name": "a", "fingerprint": "1"},
                reference={"tokenizer": {"name": "b", "fingerprint": "2"}})  # fmt: skip
    assert finding(run, "DVG015")["outcome"] == "speaks"


def test_unknown(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG015")["outcome"] == "not_applicable"
