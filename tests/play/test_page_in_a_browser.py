"""The page of `dpo-diag play` in a real headless Chromium: type, click, reload; nothing from outside, nothing acts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.play.conftest import HOSTILE
from tests.review.builders import Server
from tests.review.test_page_in_a_browser import status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="the page needs gradio: pip install 'dpo-diag[review]'")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

DONE = ".pl[data-asked='yes']"
WAIT = 60_000


@pytest.mark.slow
def test_ask_three_checkpoints(played_run: Path, tmp_path: Path, fault: Callable[..., None]) -> None:
    server = Server("play", str(played_run), "--steps", "0,10,20", "--max-new-tokens", "16", "--device", "cpu",
                    "--no-browser", log=tmp_path / "play.log")  # fmt: skip
    try:
        url = server.url()
        assert status(url.split("?")[0]) == 403
        assert status(url.split("?")[0] + "config") == 403
        with playwright.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            requests: list[str] = []
            errors: list[str] = []
            page.on("request", lambda r: requests.append(r.url))
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.goto(url)
            page.wait_for_selector(".pl[data-ready]", timeout=WAIT)
            # All are loaded before anything is asked.
            page.wait_for_function(
                "/^Loaded: ref, step 10, step 20 \\([^;]*$/.test(document.querySelector('.pl footer').textContent)",
                timeout=WAIT,
            )

            # Keys only: the prompt has the focus.
            page.keyboard.type("Where is the station?")
            page.keyboard.press("Control+Enter")
            page.wait_for_selector(DONE, timeout=WAIT)
            assert page.locator(".pl-answer h2").all_inner_texts() == [
                "ref, before training",
                "step 10",
                "step 20",
            ]
            assert "Loaded: step 10, step 20, ref" in page.inner_text("footer")
            # Random models agree on nothing: the others' tokens were all less likely under the reference.
            assert page.locator(".pl-answer:nth-child(1) [data-change]").count() == 0
            changed = page.locator(".pl-answer:nth-child(2) [data-change]")
            assert changed.count() >= 5
            first = changed.first
            assert float(first.get_attribute("data-change")) > 0
            # Readable without colour: underlined, an arrow, and the numbers in words.
            assert "underline" in first.evaluate("e => getComputedStyle(e).textDecorationLine")
            assert first.locator(".pl-arrow").inner_text() == "▲"
            first.click()
            assert "times likelier" in page.inner_text(".pl-detail")
            page.check("[data-part=numbers]")
            assert "%" in page.locator(".pl-answer:nth-child(2) .pl-number").first.inner_text()
            # On a telephone nothing is wider than the page, and a number stays on its token's line.
            page.set_viewport_size({"width": 390, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.evaluate("document.querySelector('[data-part=examples]').getBoundingClientRect().right") <= 390
            lines = "[...document.querySelectorAll('.pl-kept')].map((e) => e.getClientRects().length)"
            assert set(page.evaluate(lines)) == {1}
            page.set_viewport_size({"width": 1280, "height": 800})

            page.reload()
            page.wait_for_selector(".pl[data-ready]", timeout=WAIT)
            assert page.input_value("textarea") == "Where is the station?"

            # A hostile prompt of the run, chosen and asked with the mouse.
            page.select_option("[data-part=examples]", index=2)
            assert page.input_value("textarea") == HOSTILE
            page.click("button[type=submit]")
            page.wait_for_selector(DONE, timeout=WAIT)
            assert page.locator(".pl img, .pl-answers script").count() == 0
            assert page.evaluate("window.hacked === undefined")

            page.fill("textarea", "x" * 400)
            page.click("button[type=submit]")
            page.wait_for_selector(".pl[data-asked='failed']", timeout=WAIT)
            assert "do not fit the model" in page.inner_text("[data-part=status]")

            own = page.url
            server.kill()
            page.fill("textarea", "anyone there?")
            page.click("button[type=submit]")
            page.wait_for_function(
                "document.querySelector('[data-part=status]').textContent.includes('does not answer')", timeout=WAIT
            )
            assert [r for r in requests if not r.startswith((own, "data:", "blob:"))] == []
            assert errors == []
            browser.close()
        assert server.outside() == []
        fault("hostile text in the page of play, in a browser", tried=1)
    finally:
        server.kill()
