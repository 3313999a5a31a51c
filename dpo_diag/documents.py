"""Documents that others wrote, JSON and YAML, as values: whatever is wrong with one is a ValueError, in words.

No other file parses either (a test holds it), so that no reader has to know what the parsers raise, or what they let
through that breaks later: nesting without end, numbers of thousands of digits, halves of characters, aliases that grow.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError

MAX_DEPTH = 100
"""Lists and objects in one another; what walks a value later calls itself once or twice for each."""
MAX_DOCUMENT = 256 << 20
MAX_YAML = 1 << 18
MAX_YAML_VALUES = 1_000_000
"""Values of a YAML document with every alias written out."""
_HALF_CHARACTER = re.compile(r"\\(?:u|U0000)[dD][89a-fA-F]")
_LONG_INTEGER = re.compile(r"\d{19}")
_DECODER = json.JSONDecoder()
_APART = re.compile(r'"\s++:')
_NOT_UTF8 = "not UTF-8 at byte {}"


class Repeating(dict[Any, Any]):
    """An object in which, or in something inside it, a key stands twice; of its values the last is kept."""

    repeated: Counter[str]


def repeated_keys(value: Any, besides: Any = None) -> Mapping[str, int]:
    """The keys that stand twice in an object of what was parsed, by the number of such objects; empty for none. Those
    inside `besides`, a part of the value, are not counted."""
    if besides is not None:
        return Counter(repeated_keys(value)) - Counter(repeated_keys(besides))
    if isinstance(value, Repeating):
        return value.repeated
    found: Counter[str] = Counter()
    for inner in value if isinstance(value, list) else ():
        if isinstance(inner, (Repeating, list)):
            found.update(repeated_keys(inner))
    return found


def parse_json(text: str | bytes) -> Any:
    """The value of one JSON document; NaN and Infinity are numbers. Bytes are UTF-8, without a mark at their begin.

    Integers beyond 64 bits become floats, halves of a surrogate pair U+FFFD. `repeated_keys` of the value says what
    JSON's readers drop in silence.

    Raises:
        ValueError: it is none, or nested more than `MAX_DEPTH` deep.
    """
    text = _as_text(text)
    try:
        return _safe(_marked(json.loads(text, **_options(text)), text), text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_json_at(text: str, position: int = 0) -> tuple[Any, int]:
    """(the JSON value that begins at a place, where it ends); raises as `parse_json`."""
    try:
        value, end = _decoded(text, position)
        own = text[position:end]
        return _safe(_marked(value, own), own), end
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _decoded(text: str, position: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number of more digits than Python reads
        return json.JSONDecoder(parse_int=_integer).raw_decode(text, position)
    own = text[position:end]
    return (json.loads(own, **_options(own)) if _LONG_INTEGER.search(own) else value), end


def _marked(value: Any, text: str) -> Any:
    """The value of a text, its objects made `Repeating` in which a key stands twice. The text is read a second time
    only where it may hold more keys than the value."""
    colons = text.count(":")
    if (isinstance(value, dict) and colons <= len(value)) or colons <= (n := _n_keys(value)):
        return value
    # Quotes before a colon, less those inside a string, as far as that can be told.
    ends = text.count('":') - (0 if "\\\\" in text else text.count('\\":'))
    if ends <= n and _APART.search(text) is None:
        return value
    return json.loads(text, object_pairs_hook=_object, **_options(text))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value, found = dict(pairs), Counter[str]()
    if len(value) < len(pairs):
        found.update(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
    for inner in value.values():
        found.update(repeated_keys(inner))
    return _repeating(value, found)


def _repeating(value: dict[Any, Any], repeated: Counter[str]) -> dict[Any, Any]:
    if repeated:
        value = Repeating(value)
        value.repeated = repeated
    return value


def _n_keys(value: Any) -> int:
    """Keys in a value of JSON, those inside it included."""
    if isinstance(value, dict):
        return len(value) + sum(_n_keys(v) for v in value.values() if isinstance(v, (dict, list)))
    return sum(_n_keys(v) for v in value if isinstance(v, (dict, list))) if isinstance(value, list) else 0


def parse_yaml(text: str | bytes) -> Any:
    """The value of one YAML document, of plain types alone; dates are text, an empty document None. Keys that stand
    twice, anywhere in it: as `repeated_keys` of the whole mapping.

    Raises:
        ValueError: it is none, longer than 256 KiB, nested too deeply, or its aliases stand for too much.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"more than {MAX_YAML >> 10} KiB")
    text = _as_text(text)
    try:
        loader = _yaml_loader()(text)
        value = loader.get_single_data()
        if _size(value, {}, 0) > MAX_YAML_VALUES:
            raise ValueError("its aliases stand for too much")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # its own, and what its constructors run into: ValueError, KeyError, IndexError, ...
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    value = _whole_characters(value) if _HALF_CHARACTER.search(text) else value
    return _repeating(value, loader.repeated) if isinstance(value, dict) else value


def regular(path: Path) -> Path:
    """The path, if it leads to a file: reading a pipe or a device would wait, or never end.

    Raises:
        DiagError: it leads to something else. One that leads nowhere passes: opening it says so.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return path
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        got = kinds.get(stat.S_IFMT(mode), "a device")
        raise DiagError("not a regular file", where=path, got=got, hint="name a file", usage=True)
    return path


def read_json(path: Path, what: str, *, hint: str | None = None) -> Mapping[str, Any]:
    """The object in a JSON file.

    Args:
        what: the file in an error: "the shard index".

    Raises:
        DiagError: it cannot be read, is no JSON, or holds no object.
    """
    return _read(path, what, "JSON", hint, usage=False)


def read_yaml(path: Path, what: str, *, usage: bool = False) -> Mapping[Any, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        DiagError: it cannot be read, is no YAML, holds no mapping, or a key twice; `usage`: that is a mistake in a
            command's call.
    """
    return _read(path, what, "YAML", None, usage=usage)


def _read(path: Path, what: str, language: str, hint: str | None, *, usage: bool) -> Mapping[Any, Any]:
    try:
        with regular(path).open("rb") as file:
            text = file.read(MAX_DOCUMENT + 1)
        if len(text) > MAX_DOCUMENT:
            raise ValueError(f"more than {MAX_DOCUMENT >> 20} MiB")
        document = parse_json(text) if language == "JSON" else parse_yaml(text)
    except (FileNotFoundError, NotADirectoryError):
        raise DiagError(f"no such {what.removeprefix('the ')}", where=path, hint=hint, usage=usage) from None
    except OSError as error:
        got = error.strerror or error
        raise DiagError(f"{what} cannot be read", where=path, got=got, hint=hint, usage=usage) from error
    except ValueError as error:
        raise DiagError(f"{what} is not {language}", where=path, got=error, hint=hint, usage=usage) from error
    if document is None and language == "YAML":
        return {}
    for key in repeated_keys(document) if language == "YAML" else ():
        got = ascii(key)[:80]
        raise DiagError(f"{what} holds a key twice", where=path, got=got, hint="keep one of them", usage=usage)
    if not isinstance(document, Mapping):
        got = type(document).__name__
        raise DiagError(f"{what} holds no object of names and values", where=path, got=got, hint=hint, usage=usage)
    return document


def _as_text(text: str | bytes) -> str:
    try:
        return text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(_NOT_UTF8.format(error.start)) from None


def _options(text: str) -> dict[str, Any]:
    return {"parse_int": _integer} if _LONG_INTEGER.search(text) else {}


def _integer(digits: str) -> int | float:
    if len(digits) < 19:
        return int(digits)
    value = int(digits) if len(digits) < 25 else 1 << 64
    return value if -(1 << 63) <= value < 1 << 63 else float(digits)


def _safe(value: Any, text: str) -> Any:
    if text.count("[") + text.count("{") > MAX_DEPTH:
        level: list[Any] = [value]
        for _ in range(MAX_DEPTH):
            inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list)))
            level = [v for values in inner for v in values if isinstance(v, (dict, list))]
            if not level:
                break
        else:
            raise ValueError("nested too deeply")
    return whole_characters(value, text)


def whole_characters(value: Any, text: str) -> Any:
    """What was read of `text`, with U+FFFD for each half of a surrogate pair, which no file could take."""
    return _whole_characters(value) if _HALF_CHARACTER.search(text) else value


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, (list, tuple, set)):
        return type(value)(_whole_characters(v) for v in value)
    if isinstance(value, dict):
        whole = {_whole_characters(k): _whole_characters(v) for k, v in value.items()}
        return _repeating(whole, value.repeated) if isinstance(value, Repeating) else whole
    return value


@cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.repeated: Counter[str] = Counter()

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: dict[Any, int] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                # As a dict takes them: 1 and "1" are two keys, 1 and 0x1, or 1.0, or true, are one.
                value = key.value if key.tag.endswith(":merge") else self.construct_object(key)
                seen[value] = seen.get(value, 0) + 1
                self.repeated.update([key.value] if seen[value] == 2 else [])
            return super().construct_mapping(node, deep=deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _size(value: Any, known: dict[int, int], depth: int) -> int:
    """Values in a document, those behind an alias each time that it stands there."""
    if not isinstance(value, (dict, list, set, tuple)):
        return 1
    if depth > MAX_DEPTH:
        raise RecursionError
    if id(value) not in known:
        known[id(value)] = MAX_YAML_VALUES + 1  # where it holds itself
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(v, known, depth + 1) for v in inner)
    return known[id(value)]
