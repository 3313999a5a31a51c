"""One file of thresholds, dotted on the command line, nested in a composed configuration."""

from __future__ import annotations

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.thresholds import defaults, load_thresholds, parse_threshold


def test_the_defaults_are_flat_and_read_only() -> None:
    values = load_thresholds()
    assert values["key_tokens.gain"] == 2.0 and values["key_tokens.floor"] == -2.0
    assert values["verdict.least_harm"] == 0.02 and values["spike_mads"] == 6.0
    with pytest.raises(TypeError):
        values["spike_mads"] = 1.0  # type: ignore[index]


def test_dotted_and_nested_overrides_are_the_same() -> None:
    dotted = load_thresholds({"verdict.least_harm": 0.5, "spike_mads": 3})
    nested = load_thresholds({"verdict": {"least_harm": 0.5}, "spike_mads": "3"})
    assert dotted == nested == {**defaults(), "verdict.least_harm": 0.5, "spike_mads": 3.0}


def test_a_plugins_threshold_can_be_set() -> None:
    assert load_thresholds({"toy": 2}, {"toy": 1.0})["toy"] == 2.0


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(DiagError, match=r"did you mean verdict\.least_dlog") as error:
        load_thresholds({"verdict.least_dlg": 1.0})
    assert error.value.usage


def test_a_name_near_to_none_gets_the_list_and_no_guess() -> None:
    with pytest.raises(
        DiagError, match=r"got nope; expected one of \d+ names, such as accuracy_min_rows: dpo-diag checks CODE"
    ) as error:
        load_thresholds({"nope": 1.0})
    assert error.value.hint is None


def test_not_a_number() -> None:
    with pytest.raises(DiagError, match=r"a threshold is a number; in checks\.verdict\.least_harm; got small"):
        load_thresholds({"verdict.least_harm": "small"})


def test_a_command_lines_threshold() -> None:
    assert parse_threshold("spike_mads=3.5") == ("spike_mads", 3.5)
    for text in ("spike_mads", "=3", "spike_mads=three"):
        with pytest.raises(DiagError, match="expected NAME=NUMBER"):
            parse_threshold(text)
