"""What every page of this project shares: one file, no network, no foreign script, readable from file://.

A page is a template that extends `templates/page.html` (blocks `title`, `header`, `main`): the run's report, two runs
side by side. Style and script are the shared ones; the CSP names their hashes and allows nothing else. `ui` in a
template holds the macros of `templates/macros.html`: tables, figures, cards, boxes. Charts come from `plots`,
`scatter` and `panels`, tables from `tables`.

A template says its own words, and the sentences that it is given, through the filter `say`: in the language of the
catalogue that the page is rendered with. What a run holds goes without it. Words around values are named as printf
names them: `"%(n)s of %(all)s checks speak."|say|format(n=2, all=19)`.
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
from dpo_diag.translated import ENGLISH, Catalogue, catalogue


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
        "clean": clean, "exact": exact, "say": _say,
    }  # fmt: skip
    return made


@jinja2.pass_context
def _say(context: jinja2.runtime.Context, text: Any) -> Any:
    """The filter: a text in the language of the page that is being rendered."""
    return context["say"](text) if isinstance(text, str) and not isinstance(text, Markup) else text


def _spoken(say: Catalogue | None) -> dict[str, Any]:
    """What every template is given: the page's language, and the macros in it."""
    spoken = {"say": say or catalogue(ENGLISH)}
    return {**spoken, "ui": environment().get_template("macros.html").make_module(spoken)}


def source_hash(source: str) -> str:
    """What a CSP needs to allow exactly this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def fragment(template: str, shown: Mapping[str, Any], say: Catalogue | None = None) -> Markup:
    """A part of a page from a template's text; `say`: its language, None for English."""
    return Markup(environment().from_string(template).render({**_spoken(say), **shown}))


def page(
    template: str, shown: Mapping[str, Any], data: Mapping[str, Any] | None = None, say: Catalogue | None = None
) -> str:
    """A whole page as text; the same for the same values.

    Args:
        template: a file of `templates/` that extends page.html.
        shown: what it shows, by name.
        data: id -> a document that a script or an agent finds in the page as JSON
            (`<script type="application/json" id=...>`).
        say: the language of its words; None for English.
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
        **_spoken(say),
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
