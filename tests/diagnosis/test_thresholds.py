"""Thresholds of the explanation: one file, dotted on the command line, nested in a composed configuration."""

from __future__ import annotations

import pytest

from dpo_diag.diagnosis.thresholds import explanation_thresholds
from dpo_diag.errors import DiagError


def test_the_defaults_and_what_is_the_checks() -> None:
    values, rest = explanation_thresholds()
    assert values["key_tokens.gain"] == 2.0 and values["key_tokens.floor"] == -2.0
    assert values["verdict.least_dlog"] == 0.005 and rest == {}


def test_dotted_and_nested_overrides_are_the_same() -> None:
    dotted = explanation_thresholds({"verdict.least_dlog": 0.5, "spike_mads": 3})
    nested = explanation_thresholds({"verdict": {"least_dlog": 0.5}, "spike_mads": 3})
    assert dotted == nested and dotted[0]["verdict.least_dlog"] == 0.5 and dotted[1] == {"spike_mads": 3}


def test_a_misspelt_name_is_told_the_nearest() -> None:
    with pytest.raises(DiagError, match=r"did you mean verdict\.least_dlog") as error:
        explanation_thresholds({"verdict.least_dlg": 1.0})
    assert error.value.usage


def test_not_a_number() -> None:
    with pytest.raises(DiagError, match="a threshold is a number"):
        explanation_thresholds({"verdict.least_dlog": "small"})
