"""The page in Chinese: its own words change, what a run holds does not."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from dpo_diag import load_run
from dpo_diag.commands.diag import main
from dpo_diag.report.run_page import compared, explained, render
from dpo_diag.translated import catalogue
from tests.diagnosis.test_two_runs import written

CHINESE = re.compile(r"[\u4e00-\u9fff]")
HEADINGS = re.compile(r"<h2[^>]*>(.*?)</h2>", re.DOTALL)
LABELS = re.compile(r"<(?:legend|summary|caption|label for=\"[a-z-]+\")>([^<]+)<", re.DOTALL)
DATA = re.compile(
    r'<pre class="(?:asked|command)".*?</pre>|<div class="(?:ans|toks)">.*?</div>|<td[^>]*>.*?</td>|'
    r'<script type="application/json" id.*?</script>',
    re.DOTALL,
)
NOT_SHOWN = re.compile(r"<script.*?</script>|<style.*?</style>|<[^>]+>", re.DOTALL)


def numbers(page: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", html.unescape(NOT_SHOWN.sub(" ", page))))


def assert_the_same_page(english: str, chinese: str) -> None:
    """Headings and labels are Chinese; numbers, texts, tables' cells, commands and the JSON inside are the same."""
    assert '<html lang="en">' in english
    assert '<html lang="zh">' in chinese
    assert not CHINESE.search(english)
    assert len(HEADINGS.findall(chinese)) == len(HEADINGS.findall(english)) >= 4
    assert [text for text in HEADINGS.findall(chinese) if not CHINESE.search(text)] == []
    assert [text for text in LABELS.findall(chinese) if not CHINESE.search(text)] == []
    assert len(LABELS.findall(chinese)) > 5
    assert DATA.findall(chinese) == DATA.findall(english)
    assert numbers(chinese) == numbers(english)


def test_a_runs_page(made_run: Path) -> None:
    run = load_run(made_run)
    known, answers = explained(run), compared(run)
    english, chinese = (render(run, known, answers, say) for say in (None, catalogue("zh")))
    assert_the_same_page(english, chinese)
    assert '<h2 id="checks-title">检查</h2>' in chinese
    assert '<h2 id="unknown-title">这个 run 说明不了什么</h2>' in chinese
    assert "%(" not in NOT_SHOWN.sub(" ", chinese)  # what is filled in was


def test_two_runs_by_the_command_in_the_language_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run called "change", as a column of ours is, keeps its name in the heads of the tables."""
    a = written(tmp_path / "change", {}, {"q1": ("x", 1), "q2": ("x", 1)}, 0.5)
    b = written(tmp_path / "b", {f"p{i:02d}": 1.0 for i in range(20)}, {"q1": ("x", 1), "q2": ("y", 0)}, 0.6)
    pages = []
    for language in ("en", "zh"):
        monkeypatch.setenv("DPO_DIAG_LANG", language)
        out = tmp_path / f"{language}.html"
        assert main(["report", str(b), "--against", str(a), "--out", str(out), "--open-less"]) == 0
        pages.append(out.read_text(encoding="utf-8"))
    assert_the_same_page(*pages)
    assert '<h1 class="run">b 对 change</h1>' in pages[1]
    assert '<th scope="col">change</th><th scope="col">b</th><th scope="col">变化</th>' in pages[1]
    capsys.readouterr()
    assert main(["report", str(b), "--lang", "xx"]) == 2
    assert "no such language; in --lang; got xx" in capsys.readouterr().err
