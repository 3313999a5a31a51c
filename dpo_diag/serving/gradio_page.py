"""One Gradio page with one component: markup, style and script of ours, Python functions that the script calls.

Gradio's own widgets do not know keys, and a key press that acts on what was on the screen before it changed would
judge an answer that nobody read. So the page is one `gr.HTML` whose script names the item with every call.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_diag.extras import require
from dpo_diag.serving.calls import OnlyCalls
from dpo_diag.serving.loopback import App

Function = Callable[[dict[str, Any]], dict[str, Any]]


def require_gradio(what: str) -> None:
    """Raise a DiagError that says how to get Gradio, if it is not installed."""
    require("gradio", what)


def _plain(function: Function) -> Function:
    """A function that Gradio can mark with attributes of its own, as it cannot a bound method."""

    def call(argument: dict[str, Any]) -> dict[str, Any]:
        return function(argument)

    call.__name__ = function.__name__
    return call


def gradio_app(title: str, folder: Path, name: str, functions: Sequence[Function], what: str) -> App:
    """An ASGI application: the page `name`.html, .css and .js of `folder`.

    Args:
        title: of the browser's tab.
        folder, name: where the page's three files lie.
        functions: what the script may call, as `await callServer("NAME", {...})`: each takes and returns a JSON object.
        what: the command, for the error where Gradio is missing.
    """
    require_gradio(what)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # What Gradio keeps of its own, in a folder that goes with this process.
    os.environ["GRADIO_TEMP_DIR"] = scratch = tempfile.mkdtemp(prefix="dpo-diag-page-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import fastapi
    import gradio

    parts = {kind: (folder / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    with gradio.Blocks(analytics_enabled=False, title=title, fill_width=True) as blocks:
        gradio.HTML(
            "",
            html_template=parts["html"],
            js_on_load=(Path(__file__).parent / "call.js").read_text(encoding="utf-8") + parts["js"],
            apply_default_css=False,
            server_functions=[_plain(function) for function in functions],
        )
    app: App = gradio.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        # System fonts: the default themes name web fonts.
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        head=f"<style>{parts['css']}</style>",
    )
    return OnlyCalls(app, {function.__name__ for function in functions})
