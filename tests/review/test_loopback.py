"""The guard: no token, no page; a foreign host or origin is refused; the token becomes a cookie of this port."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dpo_diag.serving.loopback import Guard

TOKEN, PORT = "right-token", 4711


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-page", b"1")]})
    await send({"type": "http.response.body", "body": b"page"})


def request(
    query: str = "", cookie: str | None = None, host: str = f"127.0.0.1:{PORT}", origin: str | None = None,
    method: str = "GET", path: str = "/",
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    headers = [(b"host", host.encode())]
    headers += [(b"cookie", cookie.encode())] if cookie else []
    headers += [(b"origin", origin.encode())] if origin else []
    scope = {"type": "http", "method": method, "query_string": query.encode(), "headers": headers, "path": path}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(_page, TOKEN, PORT)(scope, _page, send))  # type: ignore[arg-type]
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, sent[1]["body"]


def test_the_token_opens_the_page_once_and_then_the_cookie_does() -> None:
    status, headers, body = request(f"token={TOKEN}")
    assert (status, headers["location"], body) == (303, "/", b"")
    assert headers["set-cookie"] == f"dpo_diag_{PORT}={TOKEN}; Path=/; HttpOnly; SameSite=Lax"
    status, headers, body = request(cookie=f"other=1; dpo_diag_{PORT}={TOKEN}")
    assert (status, body) == (200, b"page")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"query": "token=wrong"},
        {"query": "token="},
        {"query": "token=%ff%fe"},
        {"cookie": f"dpo_diag_{PORT}=wrong"},
        {"cookie": f"dpo_diag_1={TOKEN}"},
        {"cookie": "\x00;;=;"},
        {"query": f"token={TOKEN}", "method": "POST"},
        {"query": f"token={TOKEN}", "host": f"evil.example:{PORT}"},
        {"cookie": f"dpo_diag_{PORT}={TOKEN}", "origin": "http://evil.example"},
        {"cookie": f"dpo_diag_{PORT}={TOKEN}", "origin": "http://127.0.0.1:1"},
        {"cookie": f"dpo_diag_{PORT}={TOKEN}", "origin": "null"},
    ],
)
def test_everything_else_is_refused(case: dict[str, Any]) -> None:
    status, headers, body = request(**case)
    assert status == 403
    assert b"page" not in body.replace(b"This page", b"")
    assert "set-cookie" not in headers


def test_the_guard_itself_says_that_it_lives_to_those_who_may_ask() -> None:
    assert request(cookie=f"dpo_diag_{PORT}={TOKEN}", path="/alive")[0] == 204
    assert request(path="/alive")[0] == 403


def test_its_own_origin_may_post() -> None:
    own = f"http://127.0.0.1:{PORT}"
    assert request(cookie=f"dpo_diag_{PORT}={TOKEN}", origin=own, method="POST")[0] == 200
