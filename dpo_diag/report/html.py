"""One self-contained HTML file about a run: no network, no foreign script, readable from file://."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from dpo_diag import text
from dpo_diag.diagnosis import Explanation, explain_run
from dpo_diag.errors import DiagError
from dpo_diag.outputs import compare
from dpo_diag.records import Run, load_run
from dpo_diag.records.files import replacing
from dpo_diag.report.headline import headline
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, Section
from dpo_diag.report.text import clean, exact, finalize

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Drawn:
    """A section as the page takes it; `missing` is the reason why `body` is empty."""

    id: str
    title: str
    lead: str
    body: Markup
    missing: str


def _template_text(name: str) -> str:
    return (resources.files("dpo_diag.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number, "signed": text.signed, "percent": text.percent, "sentence": text.capital,
        "clean": clean, "exact": exact,
    }  # fmt: skip
    environment.globals["ui"] = environment.get_template("macros.html").module
    return environment


def source_hash(source: str) -> str:
    """What a CSP needs to allow exactly this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def render(run: Run, explanation: Explanation, comparison: Mapping[str, Any]) -> str:
    """The page's text. Deterministic for the same records and documents."""
    context = Context(run, explanation, comparison)
    style, script = _template_text("report.css"), _template_text("report.js")
    policy = (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    in_order = sorted(SECTIONS.items(), key=lambda item: item[1].order)
    page = _environment().get_template("report.html")
    return page.render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        head=headline(context),
        sections=[draw(name, section, context) for name, section in in_order],
    )


def draw(name: str, section: Section, context: Context) -> Drawn:
    body, missing = Markup(), ""
    try:
        if section.needs:
            context.require(section.needs)
        body = Markup(_environment().from_string(section.template).render(section.build(context)))
    except NotApplicable as reason:
        missing = str(reason)
    return Drawn(name, section.title, section.lead, body, missing)


def write_report(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    explanation: Explanation | None = None,
) -> Path:
    """Write the report of a run and return its path.

    Args:
        run: an open run or its folder.
        path: where to write; RUN/report.html if None. The file is replaced in one move, never half written.
        explanation: of the run, where it was made already; made from the records if None. What cannot be computed is
            not applicable in the page, with the reason.

    Raises:
        DiagError: the run cannot be read, or the file cannot be written.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    target = Path(path) if path is not None else opened.path / REPORT_FILE
    page = render(opened, explanation if explanation is not None else _explain(opened), _compare(opened))
    try:
        with replacing(target) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DiagError(
            "the report cannot be written", where=target, got=error.strerror, hint="name another file with --out"
        ) from error
    return target


def _explain(run: Run) -> Explanation:
    try:
        return explain_run(run)
    except DiagError as error:
        return Explanation({"not_applicable": str(error)}, None, pd.DataFrame())


def _compare(run: Run) -> dict[str, Any]:
    if not run.has("outputs"):
        return {"not_applicable": "the run has no outputs"}
    try:
        return dict(compare(run))
    except DiagError as error:
        return {"not_applicable": str(error)}
