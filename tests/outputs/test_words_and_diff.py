"""Words, scripts, diffs: by hand and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.outputs.diff import first_difference, marked, word_diff
from dpo_diag.outputs.words import diff_tokens, join, main_script, sentences, words

TEXT = st.text(st.sampled_from("ab c\n你好.，🎉"), max_size=30)


def test_words_of_spaced_and_unspaced_scripts() -> None:
    assert words("Don’t stop — it's OK.") == ("don't", "stop", "it's", "ok")
    assert words("请放心，OK吗") == ("请", "放", "心", "ok", "吗")
    assert [[w.form for w in s] for s in sentences("One two. 三！\nfour")] == [["one", "two"], ["三"], ["four"]]
    assert words("") == () and words("?!") == ()
    assert join(("请", "放", "心", "ok", "sir")) == "请放心ok sir"


def test_main_script() -> None:
    assert main_script("hello there") == "Latin"
    assert main_script("我喜欢 Python 和 SQL") == "Han"
    assert main_script("日本語のテキスト") == "Japanese"
    assert main_script("привет") == "Cyrillic"
    assert main_script("42") is None


def test_diff_by_hand() -> None:
    pieces = word_diff("SELECT a FROM t", "SELECT b, c FROM t")
    assert marked(pieces) == "SELECT [-a-]{+b, c+} FROM t"
    assert marked(word_diff("same", "same")) == "same"
    assert marked(word_diff("", "new")) == "{+new+}"
    assert marked(word_diff("old", "")) == "[-old-]"
    assert word_diff("", "") == []
    assert marked(word_diff("请放心", "请您放心")) == "请{+您+}放心"
    # A lone blank between two changed words joins them.
    assert marked(word_diff("one two x", "three four x")) == "[-one two-]{+three four+} x"


def test_context_cuts_what_did_not_change() -> None:
    pieces = word_diff("a" * 50 + " x " + "b" * 50, "a" * 50 + " y " + "b" * 50)
    assert marked(pieces, context=5) == " … aaaa [-x-]{+y+} bbbb … "


@given(TEXT, TEXT)
def test_pieces_rebuild_both_texts(old: str, new: str) -> None:
    pieces = word_diff(old, new)
    assert "".join(p.text for p in pieces if p.kind != "added") == old
    assert "".join(p.text for p in pieces if p.kind != "removed") == new
    assert "".join(diff_tokens(old)) == old
    assert (old == new) == all(p.kind == "same" for p in pieces)


def test_a_megabyte_is_diffed_by_its_ends() -> None:
    old, new = "start " + "x " * 200_000 + "end", "start " + "y " * 200_000 + "end"
    kinds = [p.kind for p in word_diff(old, new)]
    assert kinds == ["same", "removed", "added", "same"]


@pytest.mark.parametrize(
    ("old", "new", "at"), [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([], [5], 0), ([], [], None)]
)
def test_first_difference(old: list[int], new: list[int], at: int | None) -> None:
    assert first_difference(old, new) == at
