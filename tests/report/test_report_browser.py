"""The page in a real Chromium, from file://, with the network watched."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import make_explanation, make_run

from dpo_diag import load_run
from dpo_diag.diagnosis import Explanation
from dpo_diag.records import RunWriter
from dpo_diag.report import write_report, write_two_runs
from dpo_diag.report.run_page import compared, render

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
]  # fmt: skip
HOSTILE = (
    '"\'></pre></details><script>window.pwned="script"</script>'
    '<img src="http://127.0.0.1:9/x" onerror="window.pwned=1">'
    '<svg onload="window.pwned=2"><a href="javascript:window.pwned=3">x</a>\x1b[2J\u202eevil\u2066\u200b'
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: install chromium or google-chrome")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page, requests that left the file, and what the console or the CSP complained about."""
    page = browser.new_context(**options).new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(path.as_uri())
    return page, requests, complaints


def becomes(element: Any, text: str, attribute: str = "") -> None:
    """Wait until an element says this (or an attribute of it does); the page's policy forbids to evaluate a text."""
    for _ in range(100):
        if text == (element.get_attribute(attribute) if attribute else element.inner_text()):
            return
        element.page.wait_for_timeout(20)
    pytest.fail(f"never became {text!r}")


@pytest.fixture(scope="module")
def report(made_run: Path, made_explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    run = load_run(made_run)
    path.write_text(render(run, made_explanation, compared(run)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 375])
def test_it_is_readable_in_light_and_dark_wide_and_narrow(
    chromium: Any, report: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    page, requests, complaints = opened(chromium, report, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert requests == [report.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 3)"
    )
    assert (ink < 60 and paper > 200) if scheme == "light" else (ink > 200 and paper < 60)
    shown = page.locator("svg:visible")
    assert shown.count() == 7
    assert page.locator("svg text").evaluate_all(
        "(all) => all.filter(t => t.getClientRects().length).every(t => parseFloat(getComputedStyle(t).fontSize) >= 10)"
    )
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).flatMap(s => {
          const box = s.getBoundingClientRect();
          return [...s.querySelectorAll('text')].filter(t => {
            const r = t.getBoundingClientRect();
            return r.left < box.left - 1 || r.right > box.right + 1;
          }).map(t => t.textContent);
        })"""
    )
    assert outside == []
    page.screenshot(path=str(tmp_path / "shot.png"), full_page=True)
    assert (tmp_path / "shot.png").stat().st_size > 50_000
    page.context.close()


def test_text_has_contrast_in_both_schemes(chromium: Any, report: Path) -> None:
    """WCAG AA: 4.5 to 1 for the text, the muted text, and every series' name."""
    for scheme in ("light", "dark"):
        page, _, _ = opened(chromium, report, color_scheme=scheme, viewport={"width": 1100, "height": 900})
        worst = page.evaluate(
            """() => {
              const part = x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
              const lum = ([r, g, b]) => .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
              const rgb = s => s.match(/[\\d.]+/g).map(Number).slice(0, 3);
              const paper = lum(rgb(getComputedStyle(document.body).backgroundColor));
              const ratio = c => {
                const ink = lum(rgb(c));
                return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
              };
              const all = (where, what) => [...document.querySelectorAll(where)].map(e => getComputedStyle(e)[what]);
              const colours = [...all('.small, .lead, p, h2, a', 'color'), ...all('svg .name, svg .tick', 'fill')];
              return Math.min(...colours.map(ratio));
            }"""
        )
        assert worst >= 4.5, (scheme, worst)
        page.context.close()


def test_the_keyboard_finds_and_opens(chromium: Any, report: Path) -> None:
    page, _, _ = opened(chromium, report, viewport={"width": 1100, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#find")
    page.keyboard.type("number 7 ")
    becomes(page.locator("#found"), "1 of 24 prompts")
    assert page.locator(".prompt:visible").count() == 1
    card = page.locator(".prompt:visible")
    was = card.evaluate("c => c.open")
    card.locator("summary").focus()
    page.keyboard.press("Enter")
    assert card.evaluate("c => c.open") is not was
    page.fill("#find", "")
    page.click("#close-all")
    assert page.locator(".prompt[open]").count() == 0
    names = page.evaluate(
        "[...document.querySelectorAll('#filter select, #filter input, #filter button')].map("
        "e => e.labels && e.labels.length ? e.labels[0].textContent.trim() : e.textContent)"
    )
    assert all(names)
    page.context.close()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 judged prompts: 1 in 10 got worse, 1 in 20 better, 60 stay right; every third has the tag `hard`."""
    folder = tmp_path_factory.mktemp("judged") / "r"
    writer, rows = RunWriter(folder), []
    for i in range(130):
        now = i % 10 != 0 if i < 65 else i % 20 == 5
        for step, correct in ((0, i < 65), (9, now)):
            rows.append(
                {"step": step, "model": "policy", "prompt_id": f"q{i:03d}", "sample": 0, "prompt": f"ask {i:03d}",
                 "decoding_hash": "g", "correct": float(correct), "tags": ["hard"] if i % 3 == 0 else ["easy"],
                 "text": f"answer {i}" + (" in other words" if step and i % 2 else "")}
            )  # fmt: skip
    writer.write("outputs", rows)
    writer.finish()
    return write_report(folder)


def test_answers_are_sliced_searched_and_in_pages_of_fifty(chromium: Any, judged: Path) -> None:
    """7 of 0, 10, ..., 60 got worse; of 65 and above 65, 85, 105, 125 got better; 58 stay right, 61 wrong."""
    page, _, complaints = opened(chromium, judged, viewport={"width": 1100, "height": 900})
    shown, found = page.locator(".prompt:visible"), page.locator("#found")
    assert (shown.count(), found.inner_text()) == (50, "130 prompts · Page 1 of 3")
    assert [shown.nth(i).get_attribute("data-standing") for i in (0, 6, 7, 10, 11)] == [
        "regression", "regression", "gain", "gain", "both_right",
    ]  # fmt: skip
    chips = page.locator("#filter .chips label").all_inner_texts()
    assert [text.strip() for text in chips] == [
        "all (130)", "regressions: right → wrong (7)", "gains: wrong → right (4)", "both wrong (61)",
        "both right (58)",
    ]  # fmt: skip
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert (shown.count(), found.inner_text()) == (30, "130 prompts · Page 3 of 3")
    assert page.locator("#next").is_disabled()
    page.get_by_role("radio", name="regressions").check()
    assert (shown.count(), found.inner_text()) == (7, "7 of 130 prompts")
    assert not page.locator("#pager").is_visible()
    page.get_by_role("combobox", name="Tag").select_option(label="hard (44)")
    assert found.inner_text() == "3 of 130 prompts"  # 0, 30, 60
    page.get_by_role("searchbox", name="Search").fill("ask 03")
    becomes(page.locator("#found"), "1 of 130 prompts")
    page.get_by_role("button", name="Clear filters").click()
    assert found.inner_text() == "130 prompts · Page 1 of 3"
    page.get_by_role("combobox", name="Text").select_option(label="changed (65)")
    assert found.inner_text() == "65 of 130 prompts · Page 1 of 2"
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".prompt:visible").count() == 65  # paper has all that was asked for, without the controls
    assert not page.locator("#filter").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator(".prompt:visible").count() == 50
    assert complaints == []
    page.context.close()


def test_a_pointer_the_arrow_keys_and_a_finger_show_values(chromium: Any, report: Path) -> None:
    """The printed values of the lines at the nearest step, wherever they lie; the loss of the run's history."""
    page, _, complaints = opened(chromium, report, viewport={"width": 1100, "height": 900}, has_touch=True)
    chart, tip = page.locator("#curves .chart").first, page.locator(".tip")
    assert not tip.is_visible()
    values = chart.evaluate("c => JSON.parse(c.querySelector('script.values').textContent)")
    loss = next(line for line in values["lines"] if line["n"] == "DPO loss")
    chart.focus()
    page.keyboard.press("ArrowRight")
    last = tip.inner_text()
    assert last.splitlines()[0] == f"step {loss['x'][-1]:g}"
    assert f"DPO loss: {loss['t'][-1]}" in last
    page.keyboard.press("Home")
    assert f"DPO loss: {loss['t'][0]}" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    box = chart.locator("svg:visible").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "DPO loss: " in tip.inner_text()
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    bars = page.locator("#loss .chart")
    bars.scroll_into_view_if_needed()
    bars.locator("svg:visible [data-tip]").first.hover()
    assert tip.inner_text().startswith("through the chosen side: ")
    dots = page.locator("#quadrants .chart")
    dots.scroll_into_view_if_needed()
    box = dots.locator("svg:visible").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert " nats" in tip.inner_text()
    assert complaints == []
    page.context.close()


def test_a_table_beyond_the_edge_says_so_until_its_end(chromium: Any, report: Path) -> None:
    page, _, _ = opened(chromium, report, viewport={"width": 390, "height": 844})
    table = page.locator("#pairs .scrolled").first
    cue = "e => getComputedStyle(e, '::after').content"
    assert table.evaluate(cue) == '"scroll →"'
    table.locator(".scroll").evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    becomes(table, "scrolled", "class")
    assert table.evaluate(cue) == "none"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    hero = page.locator("#curves .chart").first.locator("svg:visible text").all_text_contents()
    assert {"DPO loss", "chosen perplexity"} <= set(hero)
    page.context.close()


def test_two_runs_fit_a_phone_and_a_desk(chromium: Any, judged: Path, made_run: Path, tmp_path: Path) -> None:
    """Beside each other in a wide window, below each other in a narrow one; nothing sticks out, nothing complains."""
    path = write_two_runs(made_run, judged.parent, tmp_path / "two.html")
    for width, beside in ((1100, True), (390, False)):
        page, requests, complaints = opened(chromium, path, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        first, second = (page.locator(f".beside > .run-{x}").bounding_box() for x in "ab")
        assert (abs(first["y"] - second["y"]) < 2) is beside
        assert (complaints, requests) == ([], [path.as_uri()])
        page.context.close()


def test_it_reads_without_scripts_and_prints(chromium: Any, report: Path) -> None:
    page, _, _ = opened(chromium, report, java_script_enabled=False, viewport={"width": 1100, "height": 900})
    assert page.locator("h2:visible").count() == 10
    assert page.locator(".prompt:visible").count() == 24  # all of them, and no control that does nothing
    assert not page.locator("#filter").is_visible()
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.pdf().startswith(b"%PDF")
    page.context.close()


def test_model_text_runs_nothing_and_hides_nothing(chromium: Any, tmp_path: Path, fault: Callable[..., None]) -> None:
    folder = make_run(
        tmp_path / "r", pairs=6, prompts=3, texts={i: (f"{i}{HOSTILE}", HOSTILE, HOSTILE + "b") for i in range(6)},
        answers={0: HOSTILE, 1: "x" * 1_500_000, 2: "\n" * 500 + "end"},
    )  # fmt: skip
    explanation = make_explanation(folder)
    explanation.document["verdict"]["text"] = HOSTILE
    path = tmp_path / "hostile.html"
    run = load_run(folder)
    path.write_text(render(run, explanation, {**compared(run), "sentence": HOSTILE}), encoding="utf-8")
    page, requests, complaints = opened(chromium, path, viewport={"width": 375, "height": 900})
    assert page.evaluate("window.pwned") is None
    assert requests == [path.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert "<U+202E>evil<U+2066><U+200B>" in page.locator(".narrative").inner_text()
    assert page.locator("script:not([type])").count() == 1
    assert page.evaluate("JSON.parse(document.getElementById('explanation').textContent).verdict.text") == HOSTILE
    assert path.stat().st_size < 1_000_000
    page.context.close()
    fault("hostile text in a report, in a browser", tried=1)


@pytest.mark.slow
def test_two_hundred_prompts_at_twenty_checkpoints_stay_usable(chromium: Any, tmp_path: Path) -> None:
    """Under 5 MB, open in under 2 s, with answers of about 700 characters that change at every checkpoint."""
    folder = make_run(tmp_path / "r", pairs=20, steps=tuple(range(0, 400, 20)), prompts=200, words=120)
    path = tmp_path / "large.html"
    run = load_run(folder)
    path.write_text(render(run, make_explanation(folder), compared(run)), encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    seconds = []
    for _ in range(2):  # the better of two: another job may hold the machine
        started = time.perf_counter()
        page, _, _ = opened(chromium, path, viewport={"width": 1100, "height": 900})
        seconds.append(time.perf_counter() - started)
        assert page.locator(".prompt").count() == 200
        page.context.close()
    assert min(seconds) < 2.0, seconds
