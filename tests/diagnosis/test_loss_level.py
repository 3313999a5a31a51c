"""Loss to perplexity: the values that everyone should know."""

from __future__ import annotations

import json
import math

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.decompose.loss_level import compare_levels, loss_level
from dpo_diag.errors import DiagError


@pytest.mark.parametrize(
    ("loss", "perplexity"), [(10.82, 50000), (9.21, 10000), (4.605, 100), (2.303, 10), (0.693, 2), (0.0, 1)]
)
def test_known_values(loss: float, perplexity: float) -> None:
    assert loss_level(loss)["perplexity"] == pytest.approx(perplexity, rel=0.003)


def test_flat_in_loss_is_not_flat_in_perplexity() -> None:
    (change,) = compare_levels([2.5, 2.3])
    assert (change["ppl_from"], change["ppl_to"]) == (pytest.approx(12.18, abs=5e-3), pytest.approx(9.97, abs=5e-3))
    assert compare_levels([2.5]) == []


def test_the_vocabulary_is_the_scale() -> None:
    """ln 49152 = 10.8027; 2.3 is 21.29 % of it; the uniform guess is 100 %."""
    found = loss_level(2.3, 49152)
    assert found["uniform_loss"] == pytest.approx(10.8027, abs=5e-5)
    assert found["share_of_uniform"] == pytest.approx(0.2129, abs=5e-5)
    assert "uniform guess" in loss_level(math.log(49152), 49152)["means"][1]
    assert "worse than a uniform guess" in loss_level(12.0, 49152)["means"][1]
    assert loss_level(2.3)["share_of_uniform"] is None


def test_overflow_is_null_with_its_log() -> None:
    found = loss_level(800.0)
    assert found["perplexity"] is None and found["log10_perplexity"] == pytest.approx(347.44, abs=5e-3)


@pytest.mark.parametrize(("loss", "vocabulary"), [(-0.1, None), (math.nan, None), (math.inf, None), (1.0, 1)])
def test_what_is_no_loss_is_refused(loss: float, vocabulary: int | None) -> None:
    with pytest.raises(DiagError) as caught:
        loss_level(loss, vocabulary)
    assert caught.value.usage


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ppl", "2.3", "--vocab-size", "49152", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["perplexity"] == pytest.approx(9.974, abs=5e-4) and len(document["does_not_mean"]) == 4
    assert main(["ppl", "2.5", "2.3"]) == 0
    assert "perplexity 12.182 → 9.974" in capsys.readouterr().out
    assert main(["ppl", "--vocab-size", "1", "2.3"]) == 2
    assert capsys.readouterr().err.startswith("dpo-diag ppl: a vocabulary has at least 2 tokens")
