"""The page as a file: whole, self-contained, honest about what is missing, safe with hostile text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import make_explanation, make_run

from dpo_diag import load_run
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis import Explanation
from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter
from dpo_diag.report import write_report
from dpo_diag.report.html import source_hash
from dpo_diag.report.run_page import compared, render
from dpo_diag.report.text import data_block

SECTIONS = ["outputs", "curves", "loss", "perplexity", "quadrants", "pairs", "checks", "unknown", "run"]
HOSTILE = (
    '</style></script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">'
    "\x1b[31m\u202egnp\u200b{{ 7*7 }}"
)


class Page(HTMLParser):
    """Elements and attributes of a page, void elements aside balanced."""

    VOID = frozenset({"meta", "input", "link", "img", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str | None] = []
        self.data: dict[str, str] = {}
        self.within = ""
        self.open: list[str] = []
        self.problems: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.scripts += [dict(attrs).get("type") for _ in range(tag == "script")]
        self.within = dict(attrs).get("id") or "" if tag == "script" else ""
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.within:
            self.data[self.within] = self.data.get(self.within, "") + data

    def handle_endtag(self, tag: str) -> None:
        self.within = ""
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


NO_COMPARISON = {"not_applicable": "the run has no outputs"}


@pytest.fixture(scope="module")
def page(made_run: Path, made_explanation: Explanation) -> str:
    run = load_run(made_run)
    return render(run, made_explanation, compared(run))


def test_the_sections_stand_in_their_order(page: str) -> None:
    """The verdict, what the model writes, what the loss says; nobody reviewed anything, which the box says."""
    assert re.findall(r'<section id="([a-z]+)"', page) == ["verdict", *SECTIONS]
    assert page.index("The parting of the curves</h2>") < page.index("<svg") < page.index("What moved the loss</h2>")


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert (parsed.problems, parsed.open) == ([], [])
    assert not set(parsed.tags) & {"link", "img", "iframe", "object", "embed", "form", "base"}
    assert parsed.scripts.count(None) == 1
    assert set(parsed.scripts) == {None, "application/json"}  # data, which no browser runs
    forbidden = [a for a in parsed.attributes if a[1] in ("src", "style", "srcdoc", "action") or a[1].startswith("on")]
    assert forbidden == []
    links = [v for _, name, v in parsed.attributes if name in ("href", "xlink:href")]
    assert all(v and v.startswith("#") for v in links)
    ids = [v for _, name, v in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(links) <= {f"#{i}" for i in ids}


def test_only_the_pages_own_script_and_style_may_run(page: str) -> None:
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert style and script and policy
    allowed = policy.group(1).replace("&#39;", "'")
    assert allowed.startswith("default-src 'none'; ")
    assert f"style-src '{source_hash(style.group(1))}'" in allowed
    assert f"script-src '{source_hash(script.group(1))}'" in allowed
    assert "unsafe" not in allowed


def test_every_plot_has_a_text_and_its_numbers(page: str) -> None:
    parsed = Page(page)
    plots = [v for tag, name, v in parsed.attributes if tag == "svg" and name == "aria-label"]
    small = page.partition('<div class="grid">')[2].partition("</details>")[0]
    assert len(plots) == parsed.tags.count("svg") == 2 * 7 + small.count("<figure>")  # wide and narrow of each
    assert all(v and len(v) > 5 for v in plots)
    for figure in re.findall(r"<figure>.*?</figure>", page.replace(small, ""), re.DOTALL):
        assert "<table>" in figure
    assert all('class="values"' in figure for figure in re.findall(r"<figure>.*?</figure>", small, re.DOTALL))


def test_the_numbers_of_the_explanation_are_on_the_page(page: str, made_explanation: Explanation) -> None:
    assert made_explanation.document["verdict"]["text"] in page
    assert "Harmful" in page
    for pair in made_explanation.document["pairs"]:
        assert pair["pair_id"] in page
    assert f"{made_explanation.document['loss']['to']:.4f}" in page


def test_the_whole_document_is_inside_as_explain_prints_it(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a script finds in the page is what `explain --json` prints, the next command included."""
    assert main(["explain", str(made_run), "--json", "--no-write"]) == 0
    page = write_report(made_run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads(Page(page).data["explanation"]) == json.loads(capsys.readouterr().out)


def test_data_of_a_page_ends_no_element_and_stays_the_same() -> None:
    """A lone surrogate cannot be written as UTF-8; a page's source shows nothing in another order."""
    hostile = {"a": "</script><!--<script>&amp;", "b": "\u202e\u2028\x7f\ud800\U000e0041é", "c": [1.5, None]}
    block = data_block(hostile)
    assert not set("<>&\u202e\u2028\x7f\ud800\U000e0041") & set(block)
    assert json.loads(block) == hostile
    assert "é" in block and "\\u003c/script\\u003e" in block


def test_secrets_stay_out(page: str) -> None:
    assert "not-for-the-page" not in page


def test_the_same_records_give_the_same_page(made_run: Path, made_explanation: Explanation, page: str) -> None:
    run = load_run(made_run)
    assert render(run, made_explanation, compared(run)) == page


def test_an_empty_run_says_what_it_lacks(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").finish("interrupted")
    text = render(
        load_run(tmp_path / "r"),
        Explanation({"not_applicable": "no pair records"}, None, pd.DataFrame()),
        NO_COMPARISON,
    )
    box = text.partition('<section id="unknown"')[2].partition("</section>")[0]
    reasons = dict(re.findall(r"<li><b>([^<]*)</b>: ([^<]*)</li>", box))
    assert reasons["The parting of the curves"] == "the run has no history of a loss, a perplexity or a score"
    lost = "What moved the loss, What moved each perplexity, Where each pair went, The pairs that carry it, Checks"
    assert reasons[lost] == "no pair records"
    assert reasons["What it writes"] == "the run has no outputs"
    assert "What people said" not in reasons  # there is nothing to judge
    assert f"dpo-score checkpoints=CHECKPOINTS data.path=PAIRS.jsonl out={tmp_path / 'r'}" in box
    assert f"dpo-generate checkpoints=CHECKPOINTS prompts.path=general_en out={tmp_path / 'r'}" in box
    assert re.findall(r'<section id="([a-z]+)"', text) == ["verdict", "unknown", "run"]
    assert "interrupted" in text


def test_the_report_of_a_real_explanation(made_run: Path, tmp_path: Path) -> None:
    path = write_report(made_run, tmp_path / "out" / "r.html")
    assert path == tmp_path / "out" / "r.html"
    text = path.read_text(encoding="utf-8")
    assert "checks speak" in text
    assert "What moved" in text
    assert Page(text).problems == []
    assert list(path.parent.iterdir()) == [path]  # nothing temporary stays


def test_the_default_place_is_the_run_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", pairs=4, prompts=2)
    assert write_report(run, explanation=make_explanation(run)) == run / "report.html"


def test_a_place_that_cannot_be_written_is_one_line(
    made_run: Path, made_explanation: Explanation, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiagError, match=r"the report cannot be written; in .*file/r\.html; .*hint: name another file"):
        write_report(made_run, tmp_path / "file" / "r.html", made_explanation)


def test_hostile_text_is_text_everywhere(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "r", pairs=6, prompts=3, texts={i: (HOSTILE + str(i), HOSTILE, HOSTILE + "b") for i in range(6)},
        answers=dict.fromkeys(range(3), HOSTILE),
    )  # fmt: skip
    RunWriter(folder, resume_step=10**9).update(model={"name": HOSTILE}, status="finished")
    explanation = make_explanation(folder)
    explanation.document["verdict"] |= {"label": HOSTILE, "text": HOSTILE}
    explanation.document["checks"][0] |= {
        "title": HOSTILE,
        "reason": HOSTILE,
        "evidence": {HOSTILE: HOSTILE},
        "try": [HOSTILE],
    }
    run = load_run(folder)
    grown = [{"phrase": HOSTILE, "q": 0.0, "before": 0, "after": 1, "n": 3}]
    text = render(run, explanation, {**compared(run), "sentence": HOSTILE, "phrases": grown})
    parsed = Page(text)
    assert json.loads(parsed.data["explanation"])["verdict"]["text"] == HOSTILE
    assert parsed.problems == []
    assert parsed.scripts.count(None) == 1
    assert "img" not in parsed.tags
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e\u200b]", text)
    assert "&lt;U+202E&gt;gnp&lt;U+200B&gt;" in text
    assert "{{ 7*7 }}" in text
