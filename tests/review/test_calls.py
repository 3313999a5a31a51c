"""The pages' server takes calls of its own script and nothing else: no file, no queue, no traceback."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dpo_diag.serving import loopback
from dpo_diag.serving.calls import CALL, MAX_BODY, OnlyCalls

RIGHT = {"data": {"item": "i"}, "fn_name": "judge", "component_id": 1, "session_hash": "s"}


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """As Gradio's does: a call's body is read, a wrong one answered with 500 and raised again."""
    called = json.loads((await receive())["body"]) if scope["method"] == "POST" else {}
    if called.get("component_id") == 7:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise KeyError(7)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(called.get("data")).encode()})


def ask(method: str, path: str, body: bytes = b"", app: Any = _app) -> tuple[int, bytes]:
    sent: list[Any] = []
    parts = [body[i : i + 100_000] for i in range(0, len(body), 100_000)] or [b""]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    asyncio.run(OnlyCalls(app, {"judge"})(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", 200),
        ("POST", CALL, json.dumps(RIGHT).encode(), 200),
        ("POST", "/gradio_api/upload", b"x", 404),
        ("POST", "/gradio_api/queue/join", b"{}", 404),
        ("PUT", CALL, json.dumps(RIGHT).encode(), 404),
        ("GET", "/gradio_api/upload_progress", b"", 404),
        ("POST", CALL, b"x" * (MAX_BODY + 1), 413),
        ("POST", CALL, b"{", 400),
        ("POST", CALL, b"[" * 100_000, 400),
        ("POST", CALL, b"[]", 400),
        *(("POST", CALL, json.dumps({**RIGHT, key: wrong}).encode(), 400) for key, wrong in (
            ("data", ["x"]), ("fn_name", "__init__"), ("component_id", "1"), ("component_id", 7), ("session_hash", 1),
        )),
    ],
)  # fmt: skip
def test_what_is_no_call_of_the_page_is_refused(method: str, path: str, body: bytes, status: int) -> None:
    got, said = ask(method, path, body)
    assert got == status and b"Traceback" not in said
    assert status != 200 or method == "GET" or said == b'{"item": "i"}'


def test_the_browser_is_opened_without_the_token_in_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that leads there, for its owner alone, gone with the server."""
    opened, said = [], []

    class Server:
        def __init__(self, config: Any) -> None:
            pass

        def run(self, sockets: Any) -> None:
            page = Path(urlsplit(opened[0]).path)
            assert said[0] in page.read_text() and "token=" in said[0]
            assert stat.S_IMODE(os.stat(page.parent).st_mode) == 0o700

    uvicorn = pytest.importorskip("uvicorn", reason="gradio is not installed")
    monkeypatch.setattr(uvicorn, "Server", Server)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    loopback.serve(_app, say=said.append)
    assert opened[0].startswith("file:///") and "token" not in opened[0]
    assert not Path(urlsplit(opened[0]).path).parent.exists()


REAL = """
from tests.review.test_calls import CALL, RIGHT, ask
from dpo_diag.review import page
from dpo_diag.serving.gradio_page import gradio_app
import json
def judge(call):
    return {"got": call["item"] + 1}
app = gradio_app("t", page.STATIC, "review", [judge], "dpo-diag review")
blocks = app.app.routes[-1].app.get_blocks()
component = next(b["id"] for b in blocks.config["components"] if b["type"] == "html")
call = {**RIGHT, "component_id": component, "data": {"item": 1}}
for change in ({}, {"component_id": 999}, {"data": {"item": "x"}}, {"data": {}}):
    print(*ask("POST", CALL, json.dumps({**call, **change}).encode(), app))
print(*ask("POST", "/gradio_api/upload", b"x", app))
print(ask("GET", "/", b"", app)[0])
"""


@pytest.mark.slow
def test_the_real_page_answers_its_calls_and_nothing_else() -> None:
    """Gradio itself, in a process of its own: a call, an unknown component, values that do not fit, an upload, the
    page; no traceback."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", REAL], capture_output=True, text=True, timeout=250)
    assert [line[:3] for line in done.stdout.splitlines()] == ["200", "400", "400", "400", "404", "200"], done.stderr
    assert '{"got":2}' in done.stdout and "Traceback" not in done.stdout + done.stderr
