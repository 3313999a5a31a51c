"""docs/notebook.md: the notebook of examples/, run from top to bottom, with what each cell gives."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from docs.make.markdown import joined

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "read_a_run.ipynb"
_HEAD = "<!-- made from examples/read_a_run.ipynb by python -m docs.make: edit that, not this page -->"


def page() -> str:
    """The page in Markdown; raises what a cell raises."""
    parts = [_HEAD]
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        if given := _run(source, names):
            parts.append(f"```text\n{given}\n```")
    return joined(*parts)


def _run(source: str, names: dict[str, Any]) -> str:
    """What the cell prints, and the value of its last expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names) if last is not None else None
        if value is not None:
            print(value)
    # Paths are those of this checkout; trailing blanks are a frame's padding.
    root = str(NOTEBOOK.parents[1])
    return "\n".join(line.rstrip() for line in printed.getvalue().replace(f"{root}/", "").splitlines()).strip()
