"""One self-contained HTML file about a run: no network, no foreign script, readable from file://."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.report import sections
from dpo_diag.report.headline import headline
from dpo_diag.report.text import finalize

REPORT_FILE = "report.html"


@cache
def _template_text(name: str) -> str:
    return (resources.files("dpo_diag.report") / "templates" / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """What a CSP needs to allow exactly this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(run: Run, explanation: dict[str, Any], comparison: dict[str, Any]) -> str:
    """The page's text. Deterministic for the same records and documents."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _template_text("report.css"), _template_text("report.js")
    policy = (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("report.html").render(
        policy=policy,
        style=jinja2.utils.markupsafe.Markup(style),
        script=jinja2.utils.markupsafe.Markup(script),
        head=headline(run, explanation),
        sections=sections.build(run, explanation, comparison),
    )


def write_report(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    explanation: dict[str, Any] | None = None,
) -> Path:
    """Write the report of a run and return its path.

    Args:
        run: an open run or its folder.
        path: where to write; RUN/report.html if None. The file is replaced in one move, never half written.
        explanation: the explain document; computed from the records if None. What cannot be computed stands in the
            page as not applicable, with the reason.

    Raises:
        DiagError: the run cannot be read, or the file cannot be written.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    target = Path(path) if path is not None else opened.path / REPORT_FILE
    page = render(opened, explanation if explanation is not None else _explain(opened), _compare(opened))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DiagError(
            "the report cannot be written", where=target, got=error.strerror, hint="name another file with --out"
        ) from error
    return target


def _explain(run: Run) -> dict[str, Any]:
    from dpo_diag.diagnosis import explain

    try:
        return dict(explain(run))
    except DiagError as error:
        return {"not_applicable": str(error)}


def _compare(run: Run) -> dict[str, Any]:
    if not run.has("outputs"):
        return {"not_applicable": "the run has no outputs"}
    from dpo_diag.outputs import compare

    try:
        return dict(compare(run))
    except DiagError as error:
        return {"not_applicable": str(error)}
