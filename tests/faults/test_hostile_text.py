"""Text that acts on terminals and pages, through every door into a run, and every command that reads one: at a real
terminal, and its pages in a real Chromium. (The pages of `review` and `play` have tests of their own beside them.)"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.outputs.answers import Checkpoint
from dpo_diag.records import RunWriter
from dpo_diag.review import judgements
from dpo_diag.text import HIDDEN

ACTS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj\u2066\x1b[8m"
HOSTILE = f"{ACTS}'\"></script></pre><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
NAME = HOSTILE.replace("/", "_")
"""For folders and files."""
COLOURS_AND_BARS = re.compile(r"\x1b\[(?:[0-9;]*m|[0-9]*[AK])|\r")
PAIRS = [f"p{i}" for i in range(12)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="each command is a fork")]


def write_run(folder: Path, shift: float) -> Path:
    """Every text that a run can hold is hostile: names of models, tables, metrics, prompts, tags, checkers, errors."""
    writer = RunWriter(folder, kind="trained")
    for step in (0, 10):
        rows = [
            {"step": step, "split": "eval", "role": "policy", "pair_id": pair, "side": side,
             "sum_logp": -9.0 - i / 7 - (step and (shift if side == "chosen" else 9)), "n_tokens": 4, "n_bytes": 12}
            for i, pair in enumerate(PAIRS) for side in ("chosen", "rejected")
        ]  # fmt: skip
        writer.write("pairs", rows, "eval")
        answers = [
            {"step": step, "model": "policy", "prompt_id": p, "sample": 0, "prompt": f"{p}{HOSTILE}",
             "text": f"{step}{HOSTILE}", "tags": [HOSTILE], "finish_reason": HOSTILE, "reference": HOSTILE}
            for p in (*PAIRS, HOSTILE)
        ]  # fmt: skip
        writer.write("outputs", answers, "policy")
        names = ("loss", f"score/{HOSTILE}", HOSTILE)
        writer.write(
            "history", [{"step": step, "split": "eval", "name": n, "value": 0.5 + step} for n in names], "eval"
        )
    texts = [{"split": "eval", "pair_id": p, "prompt": p + HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE + "b"}
             for p in PAIRS]  # fmt: skip
    writer.write("texts", texts, "eval")
    writer.write("alerts", [{"step": 3, "code": HOSTILE, "message": HOSTILE}])
    writer.update(model={"name": HOSTILE}, reference={"kind": "frozen copy", "name": HOSTILE}, error=HOSTILE)
    writer.finish()
    a, b = Checkpoint("policy", 0), Checkpoint("policy", 10)
    row = judgements.Judgement("ann", "person", "i", "p0", 0, a, b, "a", "b", "2026-01-01", note=HOSTILE,
                               behaviours={HOSTILE: ["a"]}, asked=[HOSTILE])  # fmt: skip
    judgements.append(folder, row)
    (folder / "pairs" / f"{NAME[:60]}.parquet").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two such runs, a log, scores and rules."""
    root = tmp_path_factory.mktemp("hostile")
    for shift in (3, 5):
        write_run(root / "runs" / f"{NAME}{shift}", shift)
    log = [{"step": i, "loss": 1.0 / i, HOSTILE: 1.0, "note": HOSTILE, HOSTILE + "x": HOSTILE} for i in range(1, 9)]
    (root / f"{NAME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log) + f"{HOSTILE}\n")
    (root / "console.log").write_text("".join(f"{HOSTILE} {{'loss': 0.{i}, '{ACTS}': 1}}\n" for i in range(1, 9)))
    (root / "scores.jsonl").write_text(json.dumps({"step": 1, "name": HOSTILE, "value": 0.5}) + f"\n{HOSTILE}\n")
    rules = [{"metric": HOSTILE, "max": HOSTILE}, {"phrase": HOSTILE, "max": 1}, {"tag": HOSTILE, "min": 0},
             {"behaviour": HOSTILE}, {"metric": "loss", "max": 1, "name": HOSTILE}, {"finding": HOSTILE}]  # fmt: skip
    (root / "rules.yaml").write_text(json.dumps({"rules": rules}))
    (root / "one.yaml").write_text(json.dumps({"rules": [rules[4]]}))
    return root


def commands(root: Path) -> list[list[str]]:
    first, second = map(str, sorted((root / "runs").iterdir()))
    log, out = str(root / f"{NAME}.jsonl"), root / f"out{NAME}"
    return [
        ["explain", first], ["explain", first, "--json"], ["explain", log], ["outputs", first],
        ["outputs", first, "--json"], ["report", first], ["report", first, "--against", second], ["doctor", first],
        ["diff", first, second], ["sweep", str(root / "runs")], ["sweep", str(root / "runs"), "--json"],
        ["gate", first, "--rules", str(root / "rules.yaml")], ["gate", first, "--rules", str(root / "one.yaml")],
        ["import", log, "--out", f"{out}1"], ["import", str(root / "console.log"), "--out", f"{out}2"],
        ["import", log, "--out", f"{out}3", "--scores", str(root / "scores.jsonl")],
        ["import", log, "--out", f"{out}1"], ["review", first, "--results"], ["track", first, "--to", HOSTILE],
        ["explain", f"/absent/{HOSTILE}"], [HOSTILE], ["explain", first, f"--{HOSTILE}"], ["checks", HOSTILE],
        ["explain", first, f"{HOSTILE}=1"], ["explain", first, "--split", HOSTILE], ["weights", HOSTILE, HOSTILE],
    ]  # fmt: skip


def at_a_terminal(arguments: list[str]) -> str:
    """What a command writes to the terminal that it runs in, standard error among it."""
    sys.stdout.flush()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="120")
        os.environ.pop("NO_COLOR", None)
        code = 99
        try:
            sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1) for n in (1, 2))  # noqa: SIM115
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                code = main(arguments)
        finally:
            sys.stdout.flush()
            os._exit(code)
    written = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux' word for the end
            break
        if not piece:
            break
        written += piece
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return written.decode("utf-8", "replace") + ("" if 0 <= code < 99 else f"Traceback: ended with {code}")


def test_no_command_lets_text_act_on_a_terminal(hostile: Path, fault: Callable[..., None]) -> None:
    """Colours and a bar's movements are the commands' own; everything else that acts is shown as <U+....>."""
    lost, shown = [], 0
    for arguments in commands(hostile):
        text = at_a_terminal(arguments)
        left = COLOURS_AND_BARS.sub("", text)
        shown += "<U+001B>" in text or "\\u001b" in text
        if (found := HIDDEN.search(left.replace("\n", ""))) or "Traceback" in text or "\x1b[8m" in text:
            at = found.start() if found else 0
            lost.append((arguments[0], ascii(left[max(0, at - 200) : at + 200]), ascii(text[-1500:])))
    print(*lost, sep="\n")
    assert shown >= 15, shown
    fault("hostile text in what a command reads, at a terminal", tried=len(commands(hostile)), lost=len(lost))


@pytest.mark.browser
def test_no_page_lets_text_act_in_a_browser(hostile: Path, fault: Callable[..., None]) -> None:
    """The report of a run, of two, of a folder of runs, and of an imported log: no script runs, nothing is fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    first, second = map(str, sorted((hostile / "runs").iterdir()))
    imported = hostile / f"imported{NAME}"
    assert main(["import", str(hostile / f"{NAME}.jsonl"), "--out", str(imported)]) == 0
    pages, lost = [], []
    for command in (
        ["report", first, "--out"], ["report", first, "--against", second, "--out"], ["report", str(imported), "--out"],
        ["sweep", str(hostile / "runs"), "--html"],
    ):  # fmt: skip
        pages.append(hostile / f"page{len(pages)}.html")
        assert main([*command, str(pages[-1])]) == 0, command
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        for path in pages:
            page, requests, said = browser.new_page(), list[str](), list[str]()
            page.on("request", lambda r, requests=requests: requests.append(r.url))
            page.on("pageerror", lambda e, said=said: said.append(str(e)))
            page.on("console", lambda m, said=said: said.append(m.text) if m.type == "error" else None)
            page.goto(path.as_uri())
            page.wait_for_timeout(300)
            hacked, images = page.evaluate("window.hacked"), page.locator("img[src=x]").count()
            outside = [r for r in requests if r != path.as_uri() and not r.startswith(("data:", "blob:"))]
            text = page.inner_text("body")
            if (
                hacked is not None
                or images
                or outside
                or said
                or HIDDEN.search(text.replace("\n", "").replace("\t", ""))
            ):
                lost.append((path.name, hacked, images, outside, said))
            assert "<U+001B>" in text or "<U+202E>" in text, path.name
        browser.close()
    print(*lost, sep="\n")
    fault("hostile text in a report, in a browser", tried=len(pages), lost=len(lost))
