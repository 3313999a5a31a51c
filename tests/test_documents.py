"""Foreign JSON and YAML: whatever is wrong with it is one ValueError, and one file alone parses either."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import dpo_diag
from dpo_diag import documents
from dpo_diag.documents import parse_json, parse_json_at, parse_yaml, read_json, read_yaml, repeated_keys
from dpo_diag.errors import DiagError

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)
"""Seven levels of ten aliases: 10^7 values."""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested too deeply"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        ("{'a': 1}", "property name"),
        ("", "Expecting value"),
    ],
)
def test_what_is_wrong_with_json_is_a_value_error(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_json_values_that_would_break_later_are_made_whole():
    """2^63 and 5,000 digits do not fit into 64 bits: floats; half of a surrogate pair is U+FFFD, in keys too."""
    assert parse_json("[9223372036854775807, 9223372036854775808, -1]") == [2**63 - 1, 9.223372036854775808e18, -1]
    assert parse_json("9" * 5000) == float("inf")
    assert parse_json('{"\\ud800": "\\ud83d\\ude00 \\udfff"}') == {"�": "😀 �"}
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json_at("x [1, " + "9" * 5000 + "] y", 2) == ([1, float("inf")], 5007)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "nested too deeply"),
        (BOMB, "aliases stand for too much"),
        ("a: &a [*a]", "aliases stand for too much"),
        ("1" * 5000, "digits"),
        ("a: !!int ''", "index"),
        ("a: !!bool x", "x"),
        ("? [a]\n: 1", "unhashable"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a" * (documents.MAX_YAML + 1), "more than 256 KiB"),
    ],
)
def test_what_is_wrong_with_yaml_is_a_value_error(text, why):
    with pytest.raises(ValueError, match=why):
        parse_yaml(text)


def test_keys_that_stand_twice_stay_known():
    """In an object, inside it, in lists; what only looks like keys in a text is none. A merged mapping overrides."""
    for text, found in (
        ('{"a": 1, "a" : 2}', {"a": 1}), ('{"a": 1}', {}), ('{"a": "\\"b\\": 1, \\"b\\": 2: \\\\", "c": ":"}', {}),
        ('[[{"x": [{"a": 1, "\\u0061": 2}]}], {"a": {"b": 1}, "a": {"b": 1, "b": 3}}]', {"a": 2, "b": 1}),
        ('{"\\ud800": 1, "x": 1, "x": 2}', {"x": 1}), ('{"a": ' + "9" * 30 + ', "a": 1}', {"a": 1}), ("[1, 2]", {}),
    ):  # fmt: skip
        assert repeated_keys(parse_json(text)) == repeated_keys(parse_json_at(text + " x")[0]) == found
    value = parse_json('[{"a": {"b": 1, "b": 2}}, {"c": 3}]')
    assert (repeated_keys(value[0]), repeated_keys(value[1]), repeated_keys(value, besides=value[0])) == (
        {"b": 1},
        {},
        {},
    )
    assert value == [{"a": {"b": 2}}, {"c": 3}]
    assert repeated_keys(parse_yaml("a: {x: 1}\nb: [{c: 1, c: 2}]\na: 2")) == {"a": 1, "c": 1}
    assert repeated_keys(parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}")) == {}
    assert repeated_keys(parse_yaml("1: a\n'1': b\nyes: c\n'yes': d")) == {"yes": 1}  # true is 1, "yes" is a text
    assert repeated_keys(parse_yaml("{a: {15: x, 0xF: y}, null: 1, ~: 2}")) == {"0xF": 1, "~": 1}


def test_a_rules_file_with_a_key_twice_is_refused(tmp_path):
    """Of two bounds the last would be held in silence."""
    (tmp_path / "rules.yaml").write_text("rules:\n- metric: loss\n  max: 0.1\n  max: 9\n")
    with pytest.raises(DiagError, match=r"the rules file holds a key twice.*got 'max'; hint: keep one of them"):
        read_yaml(tmp_path / "rules.yaml", "the rules file")


def test_a_date_in_yaml_is_text():
    assert parse_yaml("a: 2026-01-01\nb: 2026-99-99\nc: 0.1") == {"a": "2026-01-01", "b": "2026-99-99", "c": 0.1}


def test_a_file_that_holds_no_object_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "cut").write_text('{"a": ')
    (tmp_path / "empty").write_text("")
    told = {"pipe": "not a regular file.*a pipe", "list": "no object of names and values.*got list",
            "cut": "is not JSON.*Expecting value", "absent": "no such shard index"}  # fmt: skip
    for name, expected in told.items():
        with pytest.raises(DiagError, match=expected):
            read_json(tmp_path / name, "the shard index")
    assert read_yaml(tmp_path / "empty", "the rules file") == {}


def test_no_other_file_parses_json_or_yaml():
    """Who needs a document takes `documents`: what the parsers let through is then dealt with there."""
    package = Path(dpo_diag.__file__).parent
    parser = re.compile(r"\bjson\.loads?\(|raw_decode|JSONDecoder|\byaml\.(?:safe_|full_|unsafe_)?load")
    found = {f.relative_to(package).as_posix() for f in package.rglob("*.py") if parser.search(f.read_text("utf-8"))}
    assert found == {"documents.py"}
