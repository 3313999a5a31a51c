"""Write every generated page: `python -m docs.make`.

Generated pages are committed, so that they can be read without building anything; `tests/docs` holds that they are what
the code gives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs.make import commands, configuration, licences, logs, losses, notebook, pandas_api, records
from dpo_diag.diagnosis.checks.shared.pages import write_pages
from dpo_diag.rows import page as forms

DOCS = Path(__file__).resolve().parents[1]
PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands.page,
    "reference/configuration.md": configuration.page,
    "reference/pandas.md": pandas_api.page,
    "reference/records.md": records.page,
    "reference/metrics.md": records.metrics_page,
    "reference/logs.md": logs.page,
    "reference/losses.md": losses.page,
    "reference/licences.md": licences.page,
    "notebook.md": notebook.page,
    "forms.md": forms.page,
}
"""Page below docs/ -> what gives its text."""


def main() -> None:
    """Write the pages, and those of the checks."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
    n_checks = len(write_pages(DOCS / "checks"))
    print(f"wrote {len(PAGES)} pages and {n_checks} of checks below {DOCS}")


if __name__ == "__main__":
    main()
