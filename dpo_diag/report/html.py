"""What every page of this project shares: one file, no network, no foreign script, readable from file://.

A page is a template that extends `templates/page.html` (blocks `title`, `header`, `main`): the run's report, two runs
side by side. Style and script are the shared ones; the CSP names their hashes and allows nothing else. `ui` in a
template holds the macros of `templates/macros.html`: tables, figures, cards, boxes. Charts come from `plots`,
`scatter` and `panels`, tables from `tables`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dpo_diag import text
from dpo_diag.errors import DiagError
from dpo_diag.records.files import replacing
from dpo_diag.report.text import clean, data_block, exact, finalize


def _template_text(name: str) -> str:
    return (resources.files("dpo_diag.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    """Every template of a page: escaped, strict about what is not given."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_text),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": text.number, "signed": text.signed, "percent": text.percent, "sentence": text.capital,
        "clean": clean, "exact": exact,
    }  # fmt: skip
    made.globals["ui"] = made.get_template("macros.html").module
    return made


def source_hash(source: str) -> str:
    """What a CSP needs to allow exactly this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def fragment(template: str, shown: Mapping[str, Any]) -> Markup:
    """A part of a page from a template's text."""
    return Markup(environment().from_string(template).render(shown))


def page(template: str, shown: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> str:
    """A whole page as text; the same for the same values.

    Args:
        template: a file of `templates/` that extends page.html.
        shown: what it shows, by name.
        data: id -> a document that a script or an agent finds in the page as JSON
            (`<script type="application/json" id=...>`).
    """
    style, script = _template_text("page.css"), _template_text("page.js")
    policy = (
        f"default-src 'none'; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment().get_template(template).render(
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data={name: data_block(document) for name, document in (data or {}).items()},
        **shown,
    )  # fmt: skip


def write_page(source: str, target: Path) -> Path:
    """Write a page in one move, never half; its path.

    Raises:
        DiagError: the file cannot be written.
    """
    try:
        with replacing(target) as temporary:
            temporary.write_text(source, encoding="utf-8")
    except OSError as error:
        raise DiagError(
            "the report cannot be written", where=target, got=error.strerror, hint="name another file with --out"
        ) from error
    return target
