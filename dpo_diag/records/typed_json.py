"""JSON documents as frozen dataclasses: the annotations are the schema, and a value that does not fit is named.

Annotations may be str, int, float, bool, None, Any (any JSON value), Literal, unions, tuple[X, ...] or list[X] (a JSON
array), Mapping[str, X] (an object), dataclasses and named tuples (objects) of these.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dpo_diag.errors import DiagError

T = TypeVar("T")


def declared(
    meaning: str, unit: str | None = None, *, default: Any = None, factory: Callable[[], Any] | None = None
) -> Any:
    """A dataclass field with its meaning and unit; null by default, which says that the source does not know it."""
    metadata = {"meaning": meaning, "unit": unit}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def hints(kind: type) -> dict[str, Any]:
    """Field -> resolved annotation, of a dataclass."""
    return get_type_hints(kind)


def to_document(value: Any) -> Any:
    """A value as plain JSON: dataclasses as objects without their null and empty fields, tuples as arrays.

    Numbers of numpy become Python's, paths and times become text; sets are sorted.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {f.name: to_document(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {name: v for name, v in values.items() if v is not None and v != [] and v != {}}
    if isinstance(value, Mapping):
        return {str(k): to_document(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_document(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_document(v) for v in value)
    if hasattr(value, "item"):
        return value.item()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


class Tolerance(Enum):
    """What a document may hold that its type does not: nothing; unknown fields; or values of wrong types as well.

    What is tolerated is left out.
    """

    NOTHING = 0
    UNKNOWN_FIELDS = 1
    MISFITS = 2


def from_document(kind: type[T], document: Any, where: str | Path, tolerance: Tolerance = Tolerance.NOTHING) -> T:
    """A plain JSON document as `kind`.

    Args:
        where: for errors; the field's dotted name is appended.

    Raises:
        DiagError: an unknown field or a value of another type (unless tolerated), or a missing field without a default.
    """
    return cast(T, _parse(kind, document, str(where), tolerance))


def _parse(kind: Any, value: Any, where: str, tolerance: Tolerance) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _parse_union(get_args(kind), value, where, tolerance)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise _misfit(value, where, " | ".join(map(str, get_args(kind))))
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise _misfit(value, where, "a list")
        return origin(_parse(get_args(kind)[0], v, f"{where}[{i}]", tolerance) for i, v in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _misfit(value, where, "an object")
        return {str(k): _parse(get_args(kind)[1], v, f"{where}.{k}", tolerance) for k, v in value.items()}
    if hasattr(kind, "_fields"):
        if not isinstance(value, Mapping) or not value.keys() >= set(kind._fields):
            raise _misfit(value, where, f"an object of {', '.join(kind._fields)}")
        return kind(*(_parse(hints(kind)[n], value[n], f"{where}.{n}", tolerance) for n in kind._fields))
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(cast(type, kind), value, where, tolerance)
    # JSON writes 1.0 as 1 in some tools, so an integer is a float; a bool is neither.
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _misfit(value, where, _name(kind))
    return value


def _parse_union(options: tuple[Any, ...], value: Any, where: str, tolerance: Tolerance) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [o for o in options if o is not type(None)]
    if len(rest) == 1:
        return _parse(rest[0], value, where, tolerance)
    for option in rest:
        try:
            return _parse(option, value, where, tolerance)
        except DiagError:
            continue
    raise _misfit(value, where, " or ".join(_name(o) for o in rest))


def _parse_dataclass(kind: type, value: Any, where: str, tolerance: Tolerance) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _misfit(value, where, "an object")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = [k for k in value if k not in fields]
    if unknown and tolerance is Tolerance.NOTHING:
        raise DiagError("unknown field", where=where, got=unknown[0], expected=f"one of {', '.join(fields)}")
    needed = {
        f.name for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }  # fmt: skip
    # A null says that the value is not known, like an absent field.
    for name in (n for n in fields if n in needed and value.get(n) is None):
        raise DiagError("a field is missing", where=where, expected=name)
    annotations, parsed = hints(kind), {}
    for name in (n for n in fields if value.get(n) is not None):
        try:
            parsed[name] = _parse(annotations[name], value[name], f"{where}.{name}", tolerance)
        except DiagError:
            if tolerance is not Tolerance.MISFITS or name in needed:
                raise
    return kind(**parsed)


def _misfit(value: Any, where: str, expected: str) -> DiagError:
    return DiagError("a field has the wrong type", where=where, got=repr(value)[:80], expected=expected)


def _name(kind: Any) -> str:
    names: dict[Any, str] = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))
