"""A server that only this machine's user can reach: bound to 127.0.0.1, a token in the URL, nothing from outside."""

from __future__ import annotations

import hmac
import secrets
import shutil
import socket
import tempfile
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from dpo_diag.errors import DiagError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
ALIVE = "/alive"
"""Answered by the guard itself: a page asks here whether its server still lives."""

# 'unsafe-eval' and 'unsafe-inline' are Gradio's needs (it compiles a component's script in the page). What keeps model
# text from acting is that it only ever becomes textContent; what this policy keeps is that nothing leaves the machine.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """ASGI middleware: a request needs the token, as a cookie or (once, then it becomes the cookie) in the URL.

    The cookie's name carries the port, because browsers share cookies between the ports of a host and two reviewers
    may work side by side. A foreign Host (DNS rebinding) or Origin (another site's script) is refused too.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app, self.token, self.port = app, token, port
        self.cookie = f"dpo_diag_{port}"
        self.hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope.get("headers", [])}
        if scope["type"] != "http" or not self._is_ours(headers):
            await answer(send, 403, "This page answers to its own address only.")
            return
        if self._same(self._cookie_of(headers)):
            if scope.get("path") == ALIVE:
                await answer(send, 204, "")
                return
            await self.app(scope, receive, _with_headers(send))
            return
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if scope["method"] == "GET" and self._same(query.get("token", [""])[0]):
            # The token leaves the address bar, so that it reaches no screenshot, bookmark or history. Lax, since the
            # file that opens the browser (see `serve`) is another site; what acts is a POST, whose origin is checked.
            cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Lax"
            where = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
            await answer(send, 303, "", where)
            return
        await answer(send, 403, "No token, or a wrong one. Open the whole address that the command printed.")

    def _is_ours(self, headers: dict[str, str]) -> bool:
        origin = headers.get("origin")
        return headers.get("host", "") in self.hosts and (
            origin is None or origin in {f"http://{host}" for host in self.hosts}
        )

    def _cookie_of(self, headers: dict[str, str]) -> str:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return morsel.value if morsel else ""

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


async def answer(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Answer a request with a line of text."""
    body = text.encode()
    common = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*common, *HEADERS, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


def serve(app: App, *, port: int = 0, browser: bool = True, say: Callable[[str], None] = print) -> None:
    """Serve `app` behind a fresh token until interrupted; `say` gets the one address that opens it.

    Args:
        app: an ASGI application.
        port: 0 for any free one.
        browser: open the user's browser there.

    Raises:
        DiagError: the port is taken, or may not be used.
    """
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(64)
    except (OSError, OverflowError) as error:
        listener.close()
        raise DiagError(
            "the port cannot be used", where="--port", got=f"{port}: {error}", hint="leave --port out for a free one"
        ) from error
    token = secrets.token_urlsafe(24)
    number = int(listener.getsockname()[1])
    url = f"http://{HOST}:{number}/?token={token}"
    say(url)
    opener = _opener(url) if browser else None
    if opener is not None:
        webbrowser.open(opener.as_uri())
    config = uvicorn.Config(
        Guard(app, token, number), log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=2
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # Ctrl-C is how such a server is ended
    finally:
        listener.close()
        if opener is not None:
            shutil.rmtree(opener.parent, ignore_errors=True)


def _opener(url: str) -> Path:
    """A page that leads to the address, in a folder that only its owner can read: a browser is started with the page's
    name, and its arguments, which every user of the machine can list, hold no token."""
    page = Path(tempfile.mkdtemp(prefix="dpo-diag-open-")) / "open.html"
    page.write_text(f'<meta http-equiv="refresh" content="0;url={url}">', encoding="utf-8")
    return page
