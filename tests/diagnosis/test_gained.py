"""Who gained what the answers lost: hand-made distributions over five tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import build_token_run

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.causes import gained_sentences as sentences
from dpo_diag.diagnosis.decompose.gained import gained_most, gained_section, losing_positions
from dpo_diag.diagnosis.token_rows import TokenChange
from dpo_diag.text import plain

LIMITS = {"gained.top": 2.0, "gained.max_disagreement": 0.1}


def change(path: Path) -> TokenChange:
    """Chosen 4 1 2 (probabilities .5 .8 1 -> .5 .2 1), rejected 4 3 2 (.5 .4 1 -> .25 .5 1); end token 2."""
    before = ([math.log(0.5), math.log(0.8), 0.0], [math.log(0.5), math.log(0.4), 0.0])
    after = ([math.log(0.5), math.log(0.2), 0.0], [math.log(0.25), math.log(0.5), 0.0])
    run = build_token_run(path, {"q": ([4, 1, 2], [4, 3, 2])}, {0: {"q": before}, 9: {"q": after}})
    found = align(run).tokens
    assert found is not None
    return found


def test_positions_by_hand(tmp_path: Path) -> None:
    """Chosen loses .6 at position 1, a first difference; rejected .25 at position 0. What gained is not named."""
    found = losing_positions(change(tmp_path / "run"), 5)
    assert found[["side", "position", "token_id", "rival"]].values.tolist() == [
        ["chosen", 1, 1, 3], ["rejected", 0, 4, -1]
    ]  # fmt: skip
    np.testing.assert_allclose(found["lost"], [0.6, 0.25], atol=1e-7)
    assert found["prefix"].tolist() == [[4], []]
    assert found["role"].tolist() == ["first_difference", "shared_prefix"]
    assert found["worst"].tolist() == [True, True] and found["theory"].tolist() == [True, False]


def test_a_first_difference_that_gained_is_the_theorys_alone(tmp_path: Path) -> None:
    one, half = math.log(0.5), math.log(0.25)
    logps: dict[int, Any] = {0: {"q": ([half, 0.0], [one, 0.0])}, 9: {"q": ([one, 0.0], [half, 0.0])}}
    run = build_token_run(tmp_path / "run", {"q": ([1, 2], [3, 2])}, logps)
    found_change = align(run).tokens
    assert found_change is not None
    found = losing_positions(found_change, 5)
    assert found[["side", "worst", "theory"]].values.tolist() == [["chosen", False, True], ["rejected", True, False]]


def positions(**columns: Any) -> pd.DataFrame:
    row = {"pair_id": "q", "side": "chosen", "position": 1, "token_id": 1, "role": "first_difference",
           "logp_from": math.log(0.8), "logp_to": math.log(0.2), "lost": 0.6, "prefix": [4], "rival": 3, "worst": True,
           "theory": True}  # fmt: skip
    return pd.DataFrame([row | columns])


BEFORE = np.log([[0.05, 0.8, 0.05, 0.05, 0.05]])
AFTER = np.log([[0.35, 0.2, 0.05, 0.35, 0.05]])
SCORES = np.array([[2.0, 5.0, 1.0, 3.0, 0.0]])


def test_section_by_hand() -> None:
    """Token 1 lost .6; tokens 0 and 3 (the other answer's) took .3 each: half and half. First choice was 1 itself.

    Log-prob changes (ln 7, -ln 4, 0, ln 7, 0) have ranks 4.5 1 2.5 4.5 2.5, the scores 3 5 2 4 1: centred
    (1.5 -2 -.5 1.5 -.5) and (0 2 -1 1 -2): products 0 - 4 + .5 + 1.5 + 1 = -1; norms 9 and 10: rho -1/sqrt(90).
    Predicted first two: 1 and 3; gained: 0 and 3: one hit of 2, by chance 4/5.
    """
    found = gained_section(positions(), BEFORE, AFTER, SCORES, "t{}".format, LIMITS)
    chosen = found["chosen"]
    assert (chosen["n_positions"], chosen["lost"]) == (1, 0.6) and chosen["gained"] == pytest.approx(0.6)
    assert chosen["went_to"]["other_answer"] == pytest.approx(0.5)
    assert chosen["went_to"]["former_first_choice"] == 0 and chosen["went_to"]["others"] == pytest.approx(0.5)
    assert [(g["token"], g["text"], g["positions"]) for g in chosen["gainers"]] == [(0, "t0", 1), (3, "t3", 1)]
    assert [g["share"] for g in chosen["positions"][0]["gainers"]] == pytest.approx([0.5, 0.5])
    theory = found["theory"]
    assert theory["rho"]["mean"] == pytest.approx(-1 / math.sqrt(90))
    assert (theory["hits"], theory["of"], theory["hits_by_chance"]) == (1.0, 2, 0.8)
    assert theory["positions"][0]["predicted"] == ["t1", "t3"]
    assert found["agreement"]["from"]["max"] < 1e-12 and "rejected" not in found


def test_mass_that_went_to_the_former_first_choice() -> None:
    """Target .3 -> .1, first choice (token 0) .6 -> .8: all of it."""
    before, after = np.log([[0.6, 0.3, 0.1]]), np.log([[0.8, 0.1, 0.1]])
    rows = positions(logp_from=math.log(0.3), logp_to=math.log(0.1), lost=0.2, rival=-1, theory=False)
    found = gained_section(rows, before, after, np.zeros((0, 3)), str, LIMITS)
    assert found["chosen"]["went_to"] == pytest.approx({"other_answer": 0, "former_first_choice": 1, "others": 0})
    assert "not_applicable" in found["theory"]


def test_another_checkpoint_than_the_records_is_refused() -> None:
    """Loaded: log .8; recorded: log .8 - 1: a nat apart."""
    found = gained_section(positions(logp_from=math.log(0.8) - 1), BEFORE, AFTER, SCORES, str, LIMITS)
    assert "earlier checkpoint is not what the records measured" in found["not_applicable"] and "chosen" not in found
    assert found["agreement"]["from"]["median"] == pytest.approx(1) and found["agreement"]["to"]["median"] < 1e-9
    [sentence] = sentences({"gained": plain(found)})
    assert "was not computed" in sentence.text


def test_sentences_escape_tokens_and_name_their_numbers() -> None:
    found = gained_section(positions(), BEFORE, AFTER, SCORES, lambda t: "\x1b" if t == 0 else f"t{t}", LIMITS)
    chosen, theory = sentences({"gained": plain(found)})
    assert '"<U+001B>" (50 %), "t3" (50 %)' in chosen.text and chosen.keys == ("gained.chosen",)
    assert "50 % went to the other answer's token" in chosen.text
    assert "-0.11" in theory.text and "1.0 of the 2" in theory.text
    assert sentences({}) == []


def test_gained_most_by_hand() -> None:
    """Position 1 loses .5 of target 0: token 2 takes .4, token 1 .1; position 0 loses .1 to token 1; 2 gains."""
    before = np.log([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.2, 0.4, 0.4]])
    after = np.log([[0.4, 0.35, 0.25], [0.3, 0.2, 0.5], [0.3, 0.35, 0.35]])
    found = gained_most(before, after, [0, 0, 0])
    assert found[["position", "token"]].values.tolist() == [[1, 2], [1, 1], [0, 1]]
    np.testing.assert_allclose(found["share"], [0.8, 0.2, 1.0])
