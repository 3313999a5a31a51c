"""The review's page in a real headless Chromium: keys only, mouse, reload, kill and resume, two reviewers."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.review import judgements, results
from tests.review.builders import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="the page needs gradio: pip install 'dpo-diag[review]'")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

KEYS = "12tb1s2ArrowLeft,ArrowRight"
WAIT = 30_000


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Page:
    """A page that keeps what it was asked for and what went wrong in it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.goto(url)
        self.page.wait_for_selector(".rv[data-done]", timeout=WAIT)
        self.own = self.page.url

    def done(self, n: int) -> None:
        self.page.wait_for_selector(f".rv[data-done='{n}']", timeout=WAIT)

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    @property
    def item(self) -> str:
        return str(self.page.get_attribute(".rv", "data-item"))

    def clean(self) -> None:
        """Nothing was fetched from elsewhere, nothing failed, no hostile text acted."""
        assert [r for r in self.requests if not r.startswith((self.own, "data:", "blob:"))] == []
        assert self.errors == []
        assert self.page.evaluate("window.hacked === undefined")


def status(url: str, **headers: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def review(run_path: Path, reviewer: str, *more: str) -> Server:
    return Server("review", str(run_path), "--reviewer", reviewer, "--no-browser", "--n", "20", *more,
                  log=run_path.parent / f"{reviewer}.log")  # fmt: skip


@pytest.mark.slow
def test_twenty_pairs_by_keyboard_a_kill_a_second_reviewer(
    run_path: Path, browser: Any, tmp_path: Path, fault: Callable[..., None]
) -> None:
    behaviours = tmp_path / "behaviours.txt"
    behaviours.write_text("answers in the wanted structure\ncareful when unsure\n")
    servers = [review(run_path, "ann", "--behaviours", str(behaviours)), review(run_path, "ben")]
    try:
        ann_url, ben_url = (server.url() for server in servers)
        bare = ann_url.split("?")[0]
        for path in ("", "?token=wrong", "config", "gradio_api/info", "theme.css", "gradio_api/startup-events"):
            assert status(bare + path) == 403, path
        assert status(ann_url, Host="evil.example") == 403

        ann = Page(browser, ann_url)
        assert "token" not in ann.page.url
        seen = _seven_verdicts(ann, run_path)

        # Killed in the middle: the page says so, nothing is lost, a new server goes on where it was.
        servers[0].kill()
        ann.press("1")
        ann.page.wait_for_selector(".rv-notice.rv-bad", timeout=WAIT)
        assert "does not answer" in ann.page.inner_text(".rv-notice")
        assert len(judgements.read(run_path, "ann").effective()) == 7
        ann.page.context.close()
        servers.append(review(run_path, "ann"))

        # Meanwhile another person works with the mouse.
        ben = Page(browser, ben_url)
        for n in range(20):
            ben.page.click(f"button[data-verdict='{('left', 'right')[n % 2]}']")
            ben.done(n + 1)
        ben.clean()
        assert "All judged" in ben.page.inner_text(".rv")

        ann = Page(browser, servers[2].url())
        ann.done(7)
        assert ann.item not in seen
        _the_rest(ann)
        ann.clean()
        text = ann.page.inner_text(".rv")
        assert "All judged" in text and "ref (step 0)" in text and "ann, ben" in text
        assert [server.outside() for server in servers] == [[], [], []]
    finally:
        for server in servers:
            server.kill()
    document = results(run_path)
    assert [(r["reviewer"], r["n"], r["skipped"]) for r in document["reviewers"]] == [("ann", 18, 2), ("ben", 20, 0)]
    assert document["agreement"][0]["n"] == 18
    assert document["comparisons"][0]["n"] == 20
    assert document["damaged"] == []
    assert {b["behaviour"] for b in document["behaviours"]} == {
        "answers in the wanted structure",
        "careful when unsure",
    }
    fault("hostile text in the page of review, in a browser", tried=3)


def _seven_verdicts(ann: Page, run_path: Path) -> set[str]:
    """Marks, a note, a reload, an undo and seven verdicts; keys only. Returns the items seen."""
    page, seen = ann.page, {ann.item}
    ann.press("3")
    ann.press("4")
    ann.press("4")
    ann.press("n")
    page.keyboard.type("1 t b: these letters are a note")
    ann.press("Enter")
    assert page.get_attribute("[data-mark='0']", "data-state") == "left"
    assert page.get_attribute("[data-mark='1']", "data-state") == "right"
    # Nothing was judged by typing, and a reload keeps the item with what was marked.
    before = ann.item
    page.reload()
    page.wait_for_selector(".rv[data-done='0']", timeout=WAIT)
    assert ann.item == before
    assert page.get_attribute("[data-mark='1']", "data-state") == "right"
    assert page.input_value("textarea[data-part='note']").startswith("1 t b")
    ann.press("1")
    ann.done(1)
    (row,) = judgements.read(run_path, "ann").rows
    assert row.note == "1 t b: these letters are a note"
    assert row.outcome == row.left
    assert row.behaviours == {
        "answers in the wanted structure": [row.left],
        "careful when unsure": ["b" if row.left == "a" else "a"],
    }
    assert page.input_value("textarea[data-part='note']") == ""
    for n, key in enumerate(("2", "t", "b", "s", "ArrowLeft", "ArrowRight"), 2):
        seen.add(ann.item)
        assert "step 40" not in page.content() and "policy" not in page.inner_text(".rv")
        ann.press(key)
        ann.done(n)
    outcomes = [j.outcome for j in judgements.read(run_path, "ann").effective()]
    assert outcomes[2:5] == ["tie", "both_bad", "skip"]
    ann.press("u")
    ann.done(6)
    ann.press("2")
    ann.done(7)
    return seen


def _the_rest(ann: Page) -> None:
    """Thirteen more verdicts by keys, one of them a skip; the hostile answer passes by."""
    hostile = False
    for n in range(7, 20):
        text = ann.page.inner_text(".rv-answers")
        if "<script>" in text:
            hostile = True
            assert "<U+202E>" in text and "${window.hacked=3}{{x}}" in text
            assert ann.page.locator(".rv-answers img, .rv-answers script").count() == 0
        ann.press("s" if n == 12 else "12tb"[n % 4])
        ann.done(n + 1)
    assert hostile, "the fixture's hostile answer should be among the last thirteen"
