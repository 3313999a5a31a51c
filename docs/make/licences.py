"""docs/reference/licences.md: under which licence each locked package comes, as the installed package says itself."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

from docs.make.markdown import code, head, joined, table

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
# With an environment marker (`; sys_platform == ...`) it is not everybody's, and may not be installed here.
_EVERYWHERE = re.compile(r"^([\w.-]+)==\S+ \\$", re.MULTILINE)
_ABOUT = """
What `make demo` installs on every platform, beside torch, whose licences depend on its build. Each licence is the
package's own word: its expression, else its classifiers, else the line it gives. The tools of `requirements-dev.lock`
test and build, and are no part of what runs.
"""


def page() -> str:
    """The page in Markdown."""
    names = _EVERYWHERE.findall(LOCK.read_text(encoding="utf-8"))
    rows = ((code(name), _licence(name)) for name in names)
    title = head("Licences of what is installed", "requirements.lock")
    return joined(title, _ABOUT, table(("package", "licence"), rows))


def _licence(name: str) -> str:
    """As the package's metadata says, in one line."""
    told = metadata(name)
    if expression := told.get("License-Expression"):
        return expression
    classified = [c.split(" :: ")[-1] for c in told.get_all("Classifier", []) if c.startswith("License ::")]
    return ", ".join(classified) or (told.get("License") or "not said").splitlines()[0]
