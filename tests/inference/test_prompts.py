"""Prompt sets: what a file may hold, and which line is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.inference.checkers import CHECKERS, check, require_known
from dpo_diag.inference.prompts import Prompt, load_prompts, prompts_hash, shipped_prompt_sets, to_prompt, to_prompts


def _write(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_load_keeps_order_fields_and_extras(tmp_path: Path) -> None:
    file = _write(
        tmp_path,
        '{"id": "b", "prompt": "Q", "tags": ["x", "y", "x"], "reference": "R", "checker": "exact", "db": "d"}',
        "",
        '{"id": 7, "messages": [{"role": "user", "content": "你好"}]}',
    )
    first, second = load_prompts(file)
    assert (first.id, first.prompt, first.tags, first.reference) == ("b", "Q", ("x", "y"), "R")
    assert first.extra == {"db": "d"}
    assert second.id == "7" and second.messages == ({"role": "user", "content": "你好"},) and second.prompt is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "not JSON"),
        ("[1]", "the row is list"),
        ('{"prompt": "x"}', "id is missing"),
        ('{"id": "a"}', "either prompt or messages"),
        ('{"id": "a", "prompt": ""}', "prompt is not text, or empty"),
        ('{"id": "a", "prompt": "x", "tags": "t"}', "tags is not a list"),
        ('{"id": "a", "prompt": "x", "reference": 3}', "reference is not text"),
        ('{"id": "a", "messages": []}', "messages is empty"),
        ('{"id": "a", "messages": [{"role": "bot", "content": "x"}]}', "unknown role"),
        ('{"id": "a", "messages": [{"role": "user"}]}', "missing field content"),
        ('{"id": "a", "messages": [{"role": "assistant", "content": "x"}]}', "nothing is left to answer"),
    ],
)
def test_bad_line_names_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    file = _write(tmp_path, '{"id": "ok", "prompt": "x"}', line)
    with pytest.raises(DiagError, match=said) as caught:
        load_prompts(file)
    assert f"{file}, line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_twice_the_same_id_empty_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match=r"'a' occurs twice; in .*line 3; got first at .*line 1"):
        load_prompts(_write(tmp_path, '{"id": "a", "prompt": "x"}', "", '{"id": "a", "prompt": "y"}'))
    with pytest.raises(DiagError, match="empty"):
        load_prompts(_write(tmp_path, ""))
    with pytest.raises(DiagError, match="no such prompt file"):
        load_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9", "prompt": "x"}')
    with pytest.raises(DiagError, match="not UTF-8"):
        load_prompts(tmp_path / "latin.jsonl")


def test_hash_follows_content_and_order_not_form() -> None:
    a, b = {"id": "a", "prompt": "x", "tags": ["t"]}, {"id": "b", "prompt": "y"}
    assert prompts_hash([a, b]) == prompts_hash(to_prompts([a, b]))
    assert prompts_hash([a, b]) != prompts_hash([b, a])
    assert prompts_hash([a]) != prompts_hash([a | {"reference": "r"}])
    assert to_prompt(to_prompt(a).to_dict()) == to_prompt(a)


def test_trl_conversational_prompt_is_a_chat() -> None:
    assert to_prompt({"id": "a", "prompt": [{"role": "user", "content": "x"}]}).messages is not None


def test_shipped_sets_load_and_are_tagged() -> None:
    sets = shipped_prompt_sets()
    assert {"general_en", "general_zh", "sycophancy"} <= set(sets)
    for name, file in sets.items():
        prompts = load_prompts(name)
        assert prompts == load_prompts(file)
        assert all(p.tags for p in prompts)
        require_known(prompts)


def test_checkers_by_hand() -> None:
    exact = Prompt("a", "q", reference="x  y", checker="exact")
    assert check(exact, " x y\n") == 1.0 and check(exact, "x") == 0.0
    assert check(Prompt("a", "q"), "anything") is None
    assert check(Prompt("a", "q", reference="Paris", checker="contains"), "It is paris.") == 1.0
    assert check(Prompt("a", "q", checker="exact"), "no reference") is None
    assert check(Prompt("a", "q", checker="regex", extra={"pattern": r"^\d+$"}), "42") == 1.0
    assert check(Prompt("a", "q", checker="json"), '{"a": 1}') == 1.0
    assert check(Prompt("a", "q", checker="json"), "[" * 100_000) == 0.0
    with pytest.raises(DiagError, match="needs a pattern"):
        check(Prompt("a", "q", checker="regex"), "x")
    with pytest.raises(DiagError, match="unknown checker"):
        require_known([Prompt("a", "q", checker="magic")])
    assert set(CHECKERS) == {"exact", "contains", "regex", "json", "sql"}


def test_sql_checker_runs_the_query() -> None:
    from dpo_diag.tasks.sql import generate_questions

    q = generate_questions("held_out", 1, seed=0)[0]
    prompt = Prompt("a", q.prompt, reference=q.gold, checker="sql", extra={"db": q.db})
    assert check(prompt, q.gold) == 1.0
    assert check(prompt, "DROP TABLE x") == 0.0
    with pytest.raises(DiagError, match="needs db"):
        check(Prompt("a", "q", reference=q.gold, checker="sql"), "x")


def test_prompts_import_without_torch() -> None:
    code = "import sys, dpo_diag.inference.prompts, dpo_diag.inference.checkers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
