"""What a page may ask of its server: to be shown, and its own functions, with a JSON object each; nothing is uploaded.

Gradio takes files, jobs for its queue and calls of any form; our pages need none of them. A malformed call is answered
with 400 and a line, where Gradio would answer 500 and print a traceback.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.serving.loopback import App, Message, Receive, Scope, Send, answer

CALL = "/gradio_api/component_server"
MAX_BODY = 4 << 20
"""Bytes of one call: the longest prompt that a page takes, many times over."""
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)


class OnlyCalls:
    """ASGI middleware around a Gradio application.

    Args:
        app: the application.
        names: the functions that the page's script may call.
    """

    def __init__(self, app: App, names: Collection[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", "")).rstrip("/")
        if scope["type"] != "http" or (scope["method"] in ("GET", "HEAD") and "/upload" not in path):
            await self.app(scope, receive, send)
        elif scope["method"] != "POST" or path != CALL:
            await answer(send, 404, "This page takes calls of its own script only.")
        elif (body := await _body(receive)) is None:
            await answer(send, 413, f"A call holds at most {MAX_BODY} bytes.")
        elif why := self._wrong(body):
            await answer(send, 400, f"Not a call of this page: {why}.")
        else:
            await self._called(scope, body, send)

    def _wrong(self, body: bytes) -> str:
        """What is wrong with a call; "" if nothing is."""
        try:
            call = parse_json(body)
        except ValueError:
            return "no JSON"
        if not isinstance(call, dict) or not isinstance(call.get("data"), dict):
            return "data is no object"
        if call.get("fn_name") not in self.names:
            return "no such function"
        whole = isinstance(call.get("component_id"), int) and isinstance(call.get("session_hash"), str)
        return "" if whole else "component_id or session_hash is missing"

    async def _called(self, scope: Scope, body: bytes, send: Send) -> None:
        failed = False

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def sending(message: Message) -> None:
            nonlocal failed
            failed = failed or (message["type"] == "http.response.start" and message["status"] >= 500)
            if not failed:
                await send(message)

        try:
            await self.app(scope, replay, sending)
        except _MALFORMED:
            await answer(send, 400, "Not a call of this page: its values do not fit.")


async def _body(receive: Receive) -> bytes | None:
    """All of a request's body; None for more than `MAX_BODY` bytes."""
    parts, size, more = [], 0, True
    while more:
        message: Any = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MAX_BODY:
            return None
    return b"".join(parts)
