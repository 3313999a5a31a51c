"""JSON documents become frozen dataclasses; what does not fit is named with its field and what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records.typed_json import Tolerance, declared, from_document, to_document


@dataclass(frozen=True)
class Inner:
    n: int | None = declared("a count")
    share: float | None = declared("a share")


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    names: Mapping[str, str] = declared("names", factory=dict)
    either: tuple[str, ...] | str | None = None


def test_a_document_becomes_its_dataclass_and_comes_back() -> None:
    document = {"kind": "a", "inner": {"n": 3}, "rows": [{"share": 1}, {"n": 2}], "names": {"x": "y"}, "either": ["q"]}
    parsed = from_document(Outer, document, "f.json")
    assert parsed == Outer("a", Inner(3), (Inner(None, 1), Inner(2)), {"x": "y"}, ("q",))
    assert to_document(parsed) == document


def test_null_and_absent_are_the_same() -> None:
    assert from_document(Outer, {"kind": "b", "inner": None, "names": None}, "f") == Outer("b")
    assert to_document(Outer("b")) == {"kind": "b"}


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"kind": "c"}, "wrong type; in f.json.kind; got 'c'; expected a | b"),
        ({"kind": "a", "inner": {"n": 1.5}}, "wrong type; in f.json.inner.n; got 1.5; expected an integer"),
        ({"kind": "a", "inner": {"n": True}}, "wrong type; in f.json.inner.n; got True; expected an integer"),
        ({"kind": "a", "inner": {"share": "1"}}, "wrong type; in f.json.inner.share; got '1'; expected a number"),
        ({"kind": "a", "inner": []}, r"wrong type; in f.json.inner; got \[\]; expected an object"),
        ({"kind": "a", "rows": [{"n": 1}, {"m": 1}]}, r"unknown field; in f.json.rows\[1\]; got m; expected one of n"),
        ({"kind": "a", "names": {"x": 1}}, "wrong type; in f.json.names.x; got 1; expected text"),
        ({"inner": {}}, "a field is missing; in f.json; expected kind"),
        ({"kind": None}, "a field is missing; in f.json; expected kind"),
    ],
)  # fmt: skip
def test_a_misfit_is_named_with_its_field(document: Any, error: str) -> None:
    with pytest.raises(DiagError, match=error):
        from_document(Outer, document, "f.json")


def test_what_is_tolerated_is_left_out() -> None:
    document = {"kind": "a", "inner": {"n": "three", "share": 0.5}, "new": 1}
    assert from_document(Outer, document, "f", Tolerance.MISFITS) == Outer("a", Inner(None, 0.5))
    with pytest.raises(DiagError, match=r"f\.inner\.n"):
        from_document(Outer, document, "f", Tolerance.UNKNOWN_FIELDS)
    assert from_document(Outer, {"kind": "a", "new": 1}, "f", Tolerance.UNKNOWN_FIELDS) == Outer("a")
    with pytest.raises(DiagError, match=r"wrong type; in f\.kind"):  # which no default stands in for
        from_document(Outer, {"kind": 1}, "f", Tolerance.MISFITS)


def test_numbers_of_numpy_become_plain_ones() -> None:
    document = to_document({"a": np.float64(0.5), "b": (np.int64(3),), "c": {"y", "x"}, "d": None})
    assert document == {"a": 0.5, "b": [3], "c": ["x", "y"], "d": None}
    assert [type(document["a"]), type(document["b"][0])] == [float, int]
