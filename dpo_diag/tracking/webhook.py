"""A webhook: one POST of JSON for each alert. Its address is a secret, since whoever has it may post."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.text import plain, safe
from dpo_diag.tracking.base import TRACKERS, TrackerOptions

VARIABLE = "DPO_DIAG_WEBHOOK"
"""Environment variable of the address. No option and no key takes it: those are recorded, and seen by others."""
FORMAT_VARIABLE = "DPO_DIAG_WEBHOOK_FORMAT"
"""Environment variable of the body's form, where the address does not tell it."""
FORMATS = ("json", "slack", "discord")
_KEY = {"slack": "text", "discord": "content"}
LIMIT = 5.0
"""Seconds that a post may take."""


class WebhookTracker:
    """Posts alerts; scalars, answers and findings go elsewhere.

    The body as `json`: {"source": "dpo-diag", "run", "step", "title", "text", "level"}; Slack and Discord get one text.
    Which one it is says the address' host, or DPO_DIAG_WEBHOOK_FORMAT.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._name = ""

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """See `Tracker.start`; posts nothing.

        Raises:
            DiagError: no address, or one that is none.
        """
        host, form = webhook_host(), webhook_format()
        self._name = str(Path(folder))
        return {"kind": "webhook", "host": host, "format": form}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """Nothing."""

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """One POST.

        Raises:
            DiagError: the service refused it or cannot be reached; the address is not named.
        """
        post({"run": self._name, "step": step, "title": title, "text": text, "level": level})

    def finish(self, status: str = "finished") -> None:
        """Nothing."""


def is_wanted() -> bool:
    """Whether the environment names a webhook."""
    return bool(os.environ.get(VARIABLE))


def webhook_host() -> str:
    """The host of the address, which may be shown.

    Raises:
        DiagError: no address, or one that is none.
    """
    try:
        parts = urlsplit(os.environ.get(VARIABLE, "").strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise DiagError("no webhook", where=VARIABLE, got="no http(s) address", expected="the address of a webhook")
    return host if port is None else f"{host}:{port}"


def webhook_format() -> str:
    """json, slack or discord.

    Raises:
        DiagError: the environment names another one.
    """
    said, host = os.environ.get(FORMAT_VARIABLE), webhook_host()
    if said and said not in FORMATS:
        raise DiagError("unknown format of a webhook", where=FORMAT_VARIABLE, got=said, expected=", ".join(FORMATS))
    return said or next((f for f in ("slack", "discord") if host.endswith((f"{f}.com", f"{f}app.com"))), "json")


def body_of(message: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The JSON that is posted.

    >>> body_of({"run": "runs/a", "step": 7, "title": "loss_spike", "text": "loss 9", "level": "warn"}, "slack")
    {'text': 'loss_spike at step 7 of runs/a: loss 9'}
    """
    clean = {k: safe(v, one_line=True) if isinstance(v, str) else v for k, v in message.items()}
    if form == "json":
        return {"source": "dpo-diag", **plain(clean)}
    return {_KEY[form]: f"{clean['title']} at step {clean['step']} of {clean['run']}: {clean['text']}"}


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: a body that was meant for one host does not go to another."""


def post(message: Mapping[str, Any], limit: float = LIMIT) -> None:
    """Post one message.

    Raises:
        DiagError: it was not taken, whatever the reason; the address is not named.
    """
    host = webhook_host()
    data = json.dumps(body_of(message, webhook_format()), allow_nan=False).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "dpo-diag"}
    try:
        request = Request(os.environ[VARIABLE].strip(), data=data, headers=headers, method="POST")
        with build_opener(_NoRedirect).open(request, timeout=limit):
            return
    except HTTPError as error:
        got = f"status {error.code}"
        error.close()
    except URLError as error:
        got = str(error.reason) or type(error.reason).__name__
    except TimeoutError:
        got = "timed out"
    except Exception as error:  # http.client's errors may hold the path, which is the secret
        got = type(error).__name__
    raise DiagError("the webhook took no alert", where=host, got=got, hint=f"check {VARIABLE}")


TRACKERS.add("webhook", WebhookTracker)
