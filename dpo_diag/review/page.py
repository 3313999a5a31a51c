"""The page of `dpo-diag review`."""

from __future__ import annotations

from pathlib import Path

from dpo_diag.review.session import Session
from dpo_diag.serving.gradio_page import Function, gradio_app
from dpo_diag.serving.loopback import App

STATIC = Path(__file__).parent / "static"


def review_app(session: Session) -> App:
    """The page as an ASGI application, still without its guard (`dpo_diag.serving.loopback.serve` adds it)."""
    functions: list[Function] = [session.state, session.judge, session.undo, session.reopen]
    return gradio_app("dpo-diag review", STATIC, "review", functions, "dpo-diag review")
