"""How numbers, tables and JSON are printed; what a model writes must not act on what shows it."""

from __future__ import annotations

import io
import json
import math
import sys
import unicodedata
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag import text
from dpo_diag.styled import fitted

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (None, "–"), (pd.NA, "–"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "-∞"), (True, "yes"), (3, "3"),
        (-5.0, "-5"), (0.7, "0.7000"), (0.0099999, "0.01000"), (1234.5678, "1235"), (1.234e-5, "1.23e-05"),
        (1.2e7, "1.2e+07"), ("text", "text"), (np.float32(0.5), "0.5000"),
    ],
)  # fmt: skip
def test_numbers(value: object, printed: str) -> None:
    assert text.number(value) == printed


def test_numbers_in_sentences() -> None:
    assert text.signed(0.2) == "+0.200" and text.signed(-0.2) == "-0.200" and text.signed(0) == "0"
    assert text.percent(0.1234, 1) == "12.3 %" and text.percent(math.nan) == "–" and text.percent(None) == "–"
    assert text.interval([-0.187, -0.04]) == "95 % interval -0.187 to -0.0400" and text.interval(None) == "no interval"
    assert text.interval([0.4, 0.5], 0.99, text.number) == "99 % interval 0.4000 to 0.5000"
    assert text.moved(1.0, 2.0) == "rose 1 → 2" and text.moved(2.0, 1.0) == "fell 2 → 1"
    assert text.moved(1.00001, 1.00002) == "stayed at 1.000" and text.moved(None, 1.0) == "– → 1"
    assert text.plural(1, "pair") == "1 pair" and text.plural(2, "query", "queries") == "2 queries"
    assert text.some(range(3)) == "0, 1, 2" and text.some("abcdefg", 2) == "a, b and 5 more" and text.some([]) == ""


@pytest.mark.parametrize(
    ("before", "after", "digits", "printed"),
    [
        (-3.73, -3.7, 3, "-3.73 → -3.70"),
        (0, -1.395, 4, "0.000 → -1.395"),
        (0.6931, 0.004078, 4, "0.69310 → 0.00408"),
        (1.428, 17.39, 4, "1.428 → 17.390"),
        (184.43, 0.5, 4, "184.43 → 0.50"),  # at most one decimal more than the larger one needs
        (12, 7, 4, "12 → 7"),
        (0.0003, 0.0002, 4, "0.0003 → 0.0002"),
        (0.6931, 2e-7, 4, "0.6931 → 2e-07"),  # no 0 for what is none
        (1e7, 3.5, 4, "1e+07 → 3.500"),
        (None, 1, 4, "– → 1"),
        (math.nan, 1.5, 4, "NaN → 1.500"),
    ],
)
def test_both_ends_of_an_arrow_have_the_same_decimals(before: Any, after: Any, digits: int, printed: str) -> None:
    assert text.arrow(before, after, digits) == printed


def test_a_change_of_rounding_is_none() -> None:
    assert text.same(0.1887, 0.1887 - 6e-9) and text.same(-150.0, -150.0001) and not text.same(0.5, 0.50001)
    assert text.by(-6e-9) == "did not change" and text.by(-6e-5) == "fell by 6e-05"


def test_ansi_bidi_and_zero_width_become_readable() -> None:
    assert text.visible("a\x1b[31mred") == "a<U+001B>[31mred"
    assert text.visible("x\u202eexe.txt\u200b!") == "x<U+202E>exe.txt<U+200B>!"
    assert text.visible("\x9b2J\U000e0041\ud800") == "<U+009B>2J<U+E0041><U+D800>"
    assert text.visible("a\rb\x00\x7f") == "a<U+000D>b<U+0000><U+007F>"


@pytest.mark.parametrize("ordinary", ["", "line\n\tindented", "请放心。", "שלום", "مرحبا", "naïve café", "☀️ ok"])
def test_ordinary_text_of_any_script_is_untouched(ordinary: str) -> None:
    assert text.visible(ordinary) == ordinary


def test_stacked_marks_and_selector_runs_are_cut() -> None:
    """Nine marks: six stay, three are counted. A second selector after the first is spelled out."""
    assert text.visible("a" + "\u0301" * 9) == "a" + "\u0301" * 6 + "<+3 marks>"
    assert text.visible("☀\ufe0f\ufe0e") == "☀\ufe0f<U+FE0E>"


def test_every_format_and_control_character_is_covered() -> None:
    """Cf, Cc, Zl, Zp and Cs of this Python's Unicode, except newline and tab."""
    hidden = [chr(i) for i in range(sys.maxunicode + 1) if chr(i) not in "\n\t"
              and unicodedata.category(chr(i)) in ("Cf", "Cc", "Zl", "Zp", "Cs")]  # fmt: skip
    assert [hex(ord(c)) for c in hidden if text.visible(c) == c] == []


@given(ANY_TEXT)
def test_one_line_stays_one_line_and_shows_no_control(value: str) -> None:
    shown = text.safe(value, one_line=True)
    assert "\n" not in shown and "\t" not in shown and text.visible(shown) == shown


def test_long_text_is_cut_and_counted() -> None:
    assert text.safe("abcdef", max_chars=4) == "abcd… [+2 characters]" and text.safe(None) == ""


@pytest.mark.parametrize("acting", ["=1+1", " @SUM(A1)", "＝cmd", "\r=x", "+x", "|calc"])
def test_no_cell_is_a_formula(acting: str) -> None:
    assert text.for_csv(acting).startswith("'")


def test_cells_that_are_no_formula_stay() -> None:
    assert text.for_csv("-1.5e3") == "-1.5e3" and text.for_csv(2.0) == 2.0 and text.for_csv("a=b") == "a=b"
    frame = text.frame_for_csv(pd.DataFrame({"=h": ["@x", "y"], "n": [1, 2]}, index=["+i", "j"]))
    assert list(frame.columns) == ["'=h", "n"] and list(frame.index) == ["'+i", "j"] and frame["'=h"].iloc[0] == "'@x"


def test_a_table_by_hand() -> None:
    """Numbers to the right with four digits, text to the left, a wide character takes two cells."""
    rows = [["ab\x1b", -1.5, 3], ["日本", None, 12345678.0]]
    assert text.table(["name", "x", "count"], rows).split("\n") == [
        "name             x     count",
        "ab<U+001B>  -1.500         3",
        "日本             –  1.23e+07",
    ]
    assert text.table(["a", "b"], []) == "a  b"


def test_a_table_shortens_text_before_it_grows_and_never_a_number() -> None:
    lines = text.table(["text", "n"], [["x" * 80, 123456.0]], width=40).split("\n")
    assert lines[1] == "x" * 31 + "…  123456"
    narrow = text.table(["text", *"abcdef"], [["x" * 80, *[0.12345] * 6]], width=20).split("\n")
    assert narrow[1] == "x" * 11 + "…" + "  0.1235" * 6


def test_plain_values() -> None:
    value = {1: np.float32(0.5), "a": [np.int64(2), math.nan, math.inf, pd.NA, pd.NaT, np.bool_(True)], "s": {"x"},
             "f": pd.DataFrame({"c": [1.0, math.nan]}), "v": np.array([1, 2])}  # fmt: skip
    assert text.plain(value) == {
        "1": 0.5, "a": [2, None, None, None, None, True], "s": ["x"], "f": [{"c": 1.0}, {"c": None}], "v": [1, 2],
    }  # fmt: skip
    assert json.loads(text.to_json(value)) == text.plain(value) and text.to_json({"é": math.nan}) == '{"é": null}'


@pytest.mark.parametrize(
    ("change", "words"),
    [(0.5, "rose by 0.500"), (-0.003, "fell by 0.00300"), (0.0, "did not change"), (-2, "fell by 2")],
)
def test_the_word_follows_the_sign(change: float, words: str) -> None:
    assert text.by(change) == words


def test_a_line_is_wrapped_on_a_terminal_and_whole_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 cells: the indent of 2, two cells to hang by, and nine words of five letters (53) fit, ten (59) do not."""
    line = "  " + " ".join(["abcde"] * 12)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert fitted(line) == line
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert fitted(line).split("\n") == ["  " + " ".join(["abcde"] * 9), "    " + " ".join(["abcde"] * 3)]


def test_bytes_are_said_with_two_digits_below_ten() -> None:
    """Units of 1000; what rounds up to the next unit is said in it."""
    said = {
        0: "0 bytes",
        512: "512 bytes",
        1640: "1.6 kB",
        999_600: "1 MB",
        12_300_000: "12 MB",
        84e9: "84 GB",
        5e15: "5000 TB",
    }
    assert {n: text.size(n) for n in said} == said
