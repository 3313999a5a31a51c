"""Printed lists and dictionaries as what they stand for; anything else is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.records.literals import read_literal

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
MESSAGES = st.lists(st.dictionaries(TEXT, TEXT | st.none() | st.integers(), max_size=3), min_size=2, max_size=3)


@given(value=MESSAGES)
def test_python_and_numpy_print_the_same_list(value: list[Any]) -> None:
    array = np.empty(len(value), dtype=object)
    array[:] = value
    assert read_literal(repr(value)) == read_literal(repr(array)) == value
    assert read_literal(str(array)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a' 'b']", ["a", "b"]),
        ("[4.5 3. nan]", [4.5, 3.0, None]),
        ('{"a": null, "b": true}', {"a": None, "b": True}),
        ("{'a': null, 'b': array([{'c': 1}], dtype=object)}", {"a": None, "b": [{"c": 1}]}),
        ("[np.str_('a'), np.float64(3.0)]", ["a", 3.0]),
        ("[('a' 'b')]", ["ab"]),
        (r"{'\ud800k': ('\udfff', '\U0000dabc')}", {"\ufffdk": ("\ufffd", "\ufffd")}),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    """Neighbours in a list are two entries; in brackets they are one text, as Python has it."""
    assert read_literal(text) == value


@pytest.mark.parametrize(
    "text", ["", "[", "{'a': }", "[1, 2", "f(x)", "[" * 100_000, "__import__('os')", "[{'a': 1} ... {'b': 2}]"]
)
def test_what_is_not(text: str) -> None:
    with pytest.raises(ValueError):
        read_literal(text)
