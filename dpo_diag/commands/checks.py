"""`dpo-diag checks`: the table of checks, the page of one, and the pages of docs/checks/."""

from __future__ import annotations

from pathlib import Path

from dpo_diag.text import table, to_json

NEXT = "dpo-diag checks DVG001"


def checks(code: str | None = None, /, *, json: bool = False, write: Path | None = None) -> int:
    """What each check says, why it matters, what it reads, and what to do.

    Args:
        code: print the page of this check, e.g. DVG001; without it the table of all.
        json: one JSON document on standard output.
        write: write a page for each check and an index into this folder (docs/checks).
    """
    from dpo_diag.diagnosis.checks import CHECKS, all_checks
    from dpo_diag.diagnosis.checks.shared.pages import document, page, write_pages

    if write is not None:
        files = write_pages(write)
        print(to_json({"written": files}) if json else f"wrote {len(files)} files to {write}")
    elif code is not None:
        check = CHECKS[code.upper()]
        print(to_json(document(check), indent=2) if json else page(check))
    elif json:
        print(to_json({"checks": [document(check) for check in all_checks()], "next": NEXT}, indent=2))
    else:
        rows = [(check.code, check.title, check.severity, check.needs) for check in all_checks()]
        print(table(("code", "title", "severity", "needs"), rows, width=150))
        print(f"next: {NEXT}")
    return 0
