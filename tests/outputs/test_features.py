"""Measures of single answers: loops, formats, stances, languages."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.outputs import formats
from dpo_diag.outputs.answers import answers
from dpo_diag.outputs.features import checkpoint_table, corpus_distinct, distinct, features, loop_words, self_similarity
from dpo_diag.outputs.stances import load_stances
from dpo_diag.outputs.words import words

from .conftest import answer_rows, frame


def test_loops_by_hand() -> None:
    assert loop_words(words("go " * 12)) == 12
    assert loop_words(words("go " * 11)) == 0  # under 12 words
    assert loop_words(words("x y " + "a b c d " * 4 + "z")) == 16
    assert loop_words(words("a b c d e f " * 2)) == 0  # twice is no loop
    assert loop_words(words("one two three four five six seven eight nine ten eleven twelve thirteen")) == 0
    assert loop_words([]) == 0


def test_distinct_by_hand() -> None:
    assert distinct(words("a b a b"), 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct(words("a"), 2))
    assert corpus_distinct(["a b", "a b", "c d"], 2) == pytest.approx(2 / 3)


def test_self_similarity_by_hand() -> None:
    """Bigrams {ab}, {ab}, {cd}: cosines 1, 0, 0 over three pairs."""
    assert self_similarity(["a b", "a b", "c d"]) == pytest.approx(1 / 3)
    assert self_similarity(["a b c", "a b d"]) == pytest.approx(0.5)
    assert math.isnan(self_similarity(["a b", ""]))


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("SELECT name FROM nowhere WHERE x > 1", True),
        ("select 1;", True),
        ("```sql\nSELECT a FROM t\n```", True),
        ("WITH c AS (SELECT 1) SELECT * FROM c", True),
        ("SELECT FROM WHERE", False),
        ("SELECT a FROM t WHERE", False),
        ("SELECT 'open", False),
        ("SELECT 1; SELECT 2", False),
        ("hello", False),
        ("PRAGMA writable_schema = 1", False),
        ("SELECT \x00", False),
        ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, False),
    ],
)
def test_sql_that_parses(text: str, valid: bool) -> None:
    assert formats.is_sql(text) is valid


def test_nothing_is_run_by_the_parser(tmp_path: Path) -> None:
    target = tmp_path / "made.db"
    formats.is_sql(f"ATTACH DATABASE '{target}' AS x")
    formats.is_sql("CREATE TABLE t (a)")
    assert not target.exists() and not formats.is_sql("SELECT * FROM t WHERE a =")


def test_other_formats() -> None:
    assert formats.is_json('{"a": [1]}') and formats.is_json("```json\n[1, 2]\n```")
    assert not formats.is_json("42") and not formats.is_json('{"a": 1} thanks')
    assert formats.is_list("- a\n- b\n") and formats.is_list("Here:\n1. a\n2. b") and not formats.is_list("a - b\nc")
    assert formats.has_fence("x\n```py\ncode\n```\n") and not formats.has_fence("```py\nnever closed")
    assert formats.structure("# T\n\n- a\n- **b**\n| x | y |") == 5
    assert formats.structure("plain text, 3.5 percent") == 0
    kinds = {
        formats.kind(t, False)
        for t in ("", "yes", "[1]", "- a\n- b", "Is it so, or is it something else, do you think?")
    }
    assert kinds == {"empty", "short", "json", "list", "question"} and formats.kind("no", True) == "refusal"


def test_stances_show_their_hits() -> None:
    stances = load_stances()
    hits = stances.hits("I’m sorry, but I can't help with that.")
    assert hits["refusal"] == ["i can't help", "i'm sorry, but i can"] and hits["hedge"] == []
    assert stances.hits("抱歉，我不能提供这个。")["refusal"] == ["我不能提供", "抱歉，我不能"]
    assert stances.hits("可能需要咨询医生。")["hedge"] == ["咨询医生"]
    assert stances.hits("Sorry for the delay!")["refusal"] == []


def test_own_phrase_list_and_its_errors(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("refusal:\n  de: [das kann ich nicht]\n")
    assert load_stances(file).hits("Das kann ich nicht tun.")["refusal"] == ["das kann ich nicht"]
    for text, said in (("[", "not YAML"), ("- a", "holds no object"), ("refusal: [x]", "another shape")):
        file.write_text(text)
        with pytest.raises(DiagError, match=said):
            load_stances(file)
    with pytest.raises(DiagError, match="no such phrase list"):
        load_stances(tmp_path / "absent")


def test_features_and_their_means() -> None:
    rows = answer_rows(
        {"a": '{"x": 1}', "b": "nope", "c": "Я не знаю", "d": "go " * 20},
        tags={"a": ["format=json"], "b": ["format=json"]},
        finish_reason={"a": "stop", "b": "stop", "c": "stop", "d": "length"},
    )
    data = frame(rows)
    measured = features(data)
    assert measured["valid_format"].tolist()[:2] == [1.0, 0.0] and measured["valid_format"].isna().sum() == 2
    assert measured["language_switch"].tolist()[1:] == [0.0, 1.0, 0.0]
    assert measured["loop"].tolist() == [0, 0, 0, 1] and measured["truncated"].tolist() == [0, 0, 0, 1]
    assert measured["entropy"].tolist() == [0.5] * 4
    table = checkpoint_table(answers(data), measured).iloc[0]
    assert (
        table["loop"] == 0.25 and table["loop_n"] == 4 and table["valid_format"] == 0.5 and table["valid_format_n"] == 2
    )
    assert table["identical"] == 0.0


def test_missing_columns_give_nan() -> None:
    rows = answer_rows({"a": "x"}, finish_reason=None, n_tokens=None, entropy_sum=None, tags=None, prompt=None)
    measured = features(frame(rows)).iloc[0]
    assert all(math.isnan(measured[c]) for c in ("truncated", "entropy", "language_switch", "valid_format"))


def test_a_huge_answer_takes_no_minute() -> None:
    data = frame(answer_rows({"a": "|" * 200_000 + "*" * 200_000, "b": "```\n" * 50_000, "c": "\t" * 400_000}))
    assert len(features(data)) == 3
