"""What a person who is not watching should hear of a watched run: one post to the webhook of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.tracking import SafeTracker, make_tracker
from dpo_diag.tracking.webhook import is_wanted


def webhook_of(path: Path) -> SafeTracker:
    """Open; one that does nothing where the environment names none."""
    tracker = make_tracker("webhook" if is_wanted() else "none")
    tracker.start({}, path.name, path)
    return tracker


def tell_news(webhook: SafeTracker, before: Mapping[str, Any] | None, document: Mapping[str, Any]) -> None:
    """Post what is new since the last look, if anything is."""
    found = news(before, document)
    if found is not None:
        webhook.alert(int(document.get("to_step") or 0), *found)


def news(before: Mapping[str, Any] | None, document: Mapping[str, Any]) -> tuple[str, str] | None:
    """(title, text) of checks that did not speak before, and of a verdict that has become harmful; None for neither."""
    was, now = ({} if d is None else _speaking(d) for d in (before, document))
    new = {code: check for code, check in now.items() if code not in was}
    verdict = document.get("verdict") or {}
    harmful = verdict.get("harm") == "harmful" and ((before or {}).get("verdict") or {}).get("harm") != "harmful"
    if not new and not harmful:
        return None
    titles = [*(["verdict: harmful"] if harmful else []), *new]
    texts = [str(verdict.get("text") or "")] if harmful else []
    texts += [f"{code}, {check.get('title')}: {check.get('reason')}" for code, check in new.items()]
    return ", ".join(titles), "; ".join(texts)


def _speaking(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(c["code"]): c for c in document.get("checks") or [] if c.get("outcome") == "speaks"}
