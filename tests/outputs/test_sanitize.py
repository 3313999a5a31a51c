"""What a model writes must not act on what shows it."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.outputs.sanitize import cut, for_csv, for_html, for_terminal, frame_for_csv, json_for_script, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


def test_ansi_bidi_and_zero_width_become_readable() -> None:
    assert visible("a\x1b[31mred") == "a<U+001B>[31mred"
    assert visible("\x9b2J") == "<U+009B>2J"
    assert visible("x\u202eexe.txt\u200b!") == "x<U+202E>exe.txt<U+200B>!"
    assert visible("\U000e0041") == "<U+E0041>"
    assert visible("a\rb\x00\x7f") == "a<U+000D>b<U+0000><U+007F>"
    assert visible("\ud800") == "<U+D800>"


def test_ordinary_text_of_any_script_is_untouched() -> None:
    for text in (
        "",
        "line\n\tindented",
        "请放心，我们会尽快处理。",
        "שלום",
        "مرحبا",
        "naïve café",
        "☀️ ok",
        "日本語テスト",
    ):
        assert visible(text) == text


def test_stacked_marks_and_selector_runs_are_cut() -> None:
    """Nine marks: six stay, three are counted. A second selector after the first is spelled out."""
    assert visible("a" + "\u0301" * 9) == "a" + "\u0301" * 6 + "<+3 marks>"
    assert visible("☀\ufe0f\ufe0e") == "☀\ufe0f<U+FE0E>"


def test_every_format_and_control_character_is_covered() -> None:
    """Cf, Cc, Zl, Zp and Cs of this Python's Unicode, except newline and tab."""
    missed = [
        hex(i)
        for i in range(sys.maxunicode + 1)
        if unicodedata.category(chr(i)) in ("Cf", "Cc", "Zl", "Zp", "Cs")
        and chr(i) not in "\n\t"
        and visible(chr(i)) == chr(i)
    ]
    assert missed == []


@given(ANY_TEXT)
def test_visible_is_idempotent_and_printable(text: str) -> None:
    once = visible(text)
    assert visible(once) == once
    once.encode("utf-8")
    assert not any(unicodedata.category(c) in ("Cf", "Cc", "Cs") for c in once if c not in "\n\t")


def test_a_megabyte_line_is_cut_and_counted() -> None:
    assert cut("x" * 1_000_000, 10) == "x" * 10 + "… [+999990 characters]"
    assert cut("short", 5) == "short"
    assert len(for_terminal("x" * 1_000_000)) < 20_100
    assert len(for_html("<" * 1_000_000, max_chars=100)) < 500


def test_one_line_keeps_a_table_row_in_one_row() -> None:
    assert for_terminal("a\nb\tc", one_line=True) == "a\\nb\\tc"
    assert for_terminal(None) == ""
    assert for_terminal(3.5) == "3.5"


class _Collect(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.data += data


@given(ANY_TEXT)
def test_html_never_opens_a_tag_and_shows_the_text(text: str) -> None:
    parser = _Collect()
    parser.feed("<p>" + for_html(text) + "</p>")
    parser.close()
    assert parser.tags == ["p"]
    assert parser.data == visible(text)


def test_html_attribute_cannot_be_left() -> None:
    assert for_html("\" onmouseover='alert(1)'") == "&quot; onmouseover=&#x27;alert(1)&#x27;"
    assert for_html("<script>") == "&lt;script&gt;"


def test_json_for_script_cannot_close_the_script_and_is_strict() -> None:
    document = json_for_script({"t": "</script><!--&\u2028", "x": float("nan"), "y": [float("inf"), 1.5]})
    assert "<" not in document and ">" not in document and "&" not in document and "\u2028" not in document
    assert json.loads(document) == {"t": "</script><!--&\u2028", "x": None, "y": [None, 1.5]}


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", " =1", "|calc", "＝1", "%0A", "-"])
def test_csv_formulas_get_an_apostrophe(text: str) -> None:
    assert for_csv(text) == "'" + text


def test_csv_leading_breaks_numbers_and_other_types() -> None:
    assert for_csv("\tx") == "'\tx"
    assert for_csv("\r=1") == "'<U+000D>=1"
    assert for_csv("-5") == "-5" and for_csv("-1.5e-3") == "-1.5e-3" and for_csv("+.5") == "+.5"
    assert for_csv("-5\n") == "'-5\n"
    assert for_csv(-5) == -5 and for_csv(None) is None
    assert for_csv("plain = text") == "plain = text"


def test_frame_for_csv_reaches_cells_names_and_index() -> None:
    frame = pd.DataFrame({"=a": ["=1", "ok", None], "n": [-1.0, 2.0, 3.0]}, index=["=x", "y", "z"])
    out = frame_for_csv(frame)
    assert list(out.columns) == ["'=a", "n"] and list(out.index) == ["'=x", "y", "z"]
    assert out["'=a"].tolist()[:2] == ["'=1", "ok"] and pd.isna(out["'=a"].iloc[2])
    assert frame.columns[0] == "=a"
    buffer = io.StringIO()
    out.to_csv(buffer)
    assert buffer.getvalue().splitlines()[1] == "'=x,'=1,-1.0"
