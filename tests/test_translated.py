"""Chinese: every template keeps its names, every sentence its numbers, and none is left half in English."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.checks import CheckContext, all_checks
from dpo_diag.diagnosis.labels import ALSO, LABELS, OF_CODE, OF_THE_WHOLE
from dpo_diag.diagnosis.narrative import HEADINGS
from dpo_diag.styled import wrap
from dpo_diag.text import capital
from dpo_diag.thresholds import defaults
from dpo_diag.translated import LOCALE, Catalogue, catalogue, languages, read_po

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOTS = ROOT / "tests" / "golden" / "snapshots"
SAID = re.compile(
    r"(?:explain\.)?output\.(?:checks\.\w+\.(?:reason|title|try\[\d+\])|verdict\.(?:headline|harm_text|text)|"
    r"remedies\[\d+\]\.(?:name|why|do)|narrative\[\d+\]\.(?:heading|sentences\[\d+\]\.text)): (.*)"
)
"""Lines of a snapshot that hold a sentence."""
LEFT_IN_ENGLISH = 6
"""Notes of single importers, of some 700 sentences: nothing in the short form."""
NAMES = re.compile(r"\{(\w+)\}|%\((\w+)\)s")


def sentences() -> list[str]:
    lines = (line for file in SNAPSHOTS.glob("*.text.txt") for line in file.read_text(encoding="utf-8").splitlines())
    return sorted({m.group(1) for m in map(SAID.fullmatch, lines) if m})


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", text))


@pytest.mark.parametrize("language", [name for name in languages() if name != "en"])
def test_every_template_keeps_its_names(language: str) -> None:
    text = (LOCALE / language / "LC_MESSAGES" / "dpo_diag.po").read_text(encoding="utf-8")
    entries = read_po(text)
    assert len(entries) == text.count("\nmsgid ") - 1  # the first one is the header: none stands twice, none is empty
    assert [k for k, v in entries.items() if sorted(NAMES.findall(k)) != sorted(NAMES.findall(v))] == []


def test_what_an_explanation_says_is_said_whole_and_with_the_same_numbers() -> None:
    """Over the sentences of all explanations that the snapshots hold."""
    zh, said = catalogue("zh"), sentences()
    assert len(said) > 500
    assert len([text for text in said if not zh.has(text)]) <= LEFT_IN_ENGLISH
    assert [text for text in said if numbers(zh(text)) != numbers(text)] == []


def test_headings_labels_titles_and_advice_have_a_text() -> None:
    zh = catalogue("zh")
    texts = [*HEADINGS, *LABELS.values(), *ALSO.values(), *OF_CODE.values(), *OF_THE_WHOLE.values()]
    texts += ["low", "medium", "high", "trained", "imported", "scored"]
    for check in all_checks():
        texts += [check.title, check.says, check.why, check.needs, check.severity, *check.false_alarms]
        texts += [line.text for line in check.advice] + [str(line) for line in check.advice]
    assert [text for text in texts if not zh.has(text) or not zh.has(capital(text))] == []


def test_every_check_that_speaks_speaks_it(tmp_path: Path) -> None:
    zh, left = catalogue("zh"), []
    for check in all_checks():
        run = check.bad.write(tmp_path / check.code)
        reason = check.run(CheckContext.from_run(run), {**defaults(), **check.thresholds})["reason"]
        left += [reason] * (not zh.has(reason))
    assert left == []


def test_a_template_takes_numbers_and_a_runs_own_words_and_leaves_no_english_behind() -> None:
    """ "a; b" is cut where both pieces are known; a piece of English without a text leaves the sentence as it was."""
    said = Catalogue({
        "{first}; {second}": "{first}；{second}", "the loss; the margin": "二者", "it rose by {x}": "升 {x}",
        "pair {own_pair} fell": "{own_pair} 降", "of {word_split}": "{word_split} 的",
    })  # fmt: skip
    assert said("The loss; the margin; it rose by -1.5e-3.") == "二者；升 -1.5e-3。"
    assert said("it rose by a lot") == "it rose by a lot"
    assert said("the loss; some other thing") == "the loss; some other thing"
    assert said('pair "a b; c" fell') == '"a b; c" 降'
    assert (said("of eval"), said("of two words")) == ("eval 的", "of two words")
    assert said("It rose by 2. Some other thing. It rose by 3.") == "升 2。Some other thing. 升 3。"
    assert catalogue("en")("The loss fell.") == "The loss fell."


def test_chinese_is_wrapped_by_cells_and_no_line_begins_with_a_closing_mark() -> None:
    """Each letter takes two cells: five fill ten; the comma goes with the letter before it, a word stays whole."""
    assert wrap("一二三四五，六七八", 10) == ["一二三四", "五，六七八"]
    assert wrap("一二 log-prob 三", 12) == ["一二", "log-prob 三"]
    assert wrap("二（一）三", 6) == ["二", "（一）", "三"]


def test_the_command_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = str(ROOT / "runs" / "example")
    assert main(["explain", example, "--no-write", "--lang", "zh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[1] == "loss 下降，但 chosen 回答的似然也下降了。这是有害的。"
    assert lines[-1] == f"后续  dpo-diag outputs {example}"
    monkeypatch.setenv("DPO_DIAG_LANG", "zh")
    assert main(["explain", example, "--no-write", "--full"]) == 0
    assert "有多确定\n  把握：高。\n" in capsys.readouterr().out
    assert main(["explain", example, "--no-write", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["harm_text"] == "It is harm."
    assert main(["explain", example, "--no-write", "--lang", "en"]) == 0
    assert "It is harm." in capsys.readouterr().out
    monkeypatch.setenv("DPO_DIAG_LANG", "xx")
    assert main(["explain", example, "--no-write"]) == 2
    assert "no such language; in DPO_DIAG_LANG; got xx; expected en, zh" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["zh", "zh_CN.UTF-8", "zh-Hans", "ZH"])
def test_a_language_may_be_named_as_systems_do(name: str) -> None:
    assert catalogue(name) is catalogue("zh")
