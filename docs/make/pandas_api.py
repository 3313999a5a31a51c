"""docs/reference/pandas.md: what `import dpo_diag` offers, from its docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from docstring_parser import parse

import dpo_diag
from docs.make.markdown import head, joined

_ABOUT = """
`import dpo_diag` brings no torch, and pandas only when a run is opened. A [notebook](../notebook.md) uses what stands
here; the frames' columns are [record columns](records.md).
"""


def page() -> str:
    """The page in Markdown."""
    parts = [head("pandas API", "the docstrings of dpo_diag"), _ABOUT]
    parts += [_function(f"dpo_diag.{f.__name__}", f, "##") for f in (dpo_diag.load_run, dpo_diag.load_runs)]
    for kind in (dpo_diag.Run, dpo_diag.Runs, dpo_diag.RunWriter, dpo_diag.Probe):
        parts.append(f"## {kind.__name__}\n\n{_text(inspect.getdoc(kind) or '')}")
        parts += _members(kind)
    return joined(*parts)


def _members(kind: type) -> Iterator[str]:
    """Public members that the class itself defines, in the order of the source."""
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, (property, cached_property)):
            about = inspect.getdoc(member) or f"Every run's `.{name}`, with a `run` column."
            yield f"### {kind.__name__}.{name}\n\n{_text(about)}"
        elif inspect.isfunction(member):
            yield _function(f"{kind.__name__}.{name}", member, "###")


def _function(name: str, function: Callable[..., Any], level: str) -> str:
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    shown = signature.replace(parameters=parameters, return_annotation=signature.empty)
    written = str(shown).replace("'", '"')  # as the formatter writes it
    return f"{level} {name}\n\n```python\n{name}{written}\n```\n\n{_text(inspect.getdoc(function) or '')}"


def _text(docstring: str) -> str:
    """A docstring in Google's style as Markdown: what it is, its arguments, what it raises."""
    parsed = parse(docstring)
    lines = [parsed.description or ""]
    if parsed.params:
        lines += ["", *(f"- `{p.arg_name}`: {_flat(p.description)}" for p in parsed.params)]
    if parsed.returns is not None:
        lines += ["", f"Returns: {_flat(parsed.returns.description)}"]
    if parsed.raises:
        lines += ["", *(f"- raises `{r.type_name}`: {_flat(r.description)}" for r in parsed.raises)]
    return "\n".join(lines) + "\n"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())
