"""`dpo-diag checks`: the table of checks, the page of one, and the pages of docs/checks/."""

from __future__ import annotations

import sys
from pathlib import Path

from dpo_diag.command_lines import say_next
from dpo_diag.next_steps import after_checks
from dpo_diag.text import table, terminal_width, to_json
from dpo_diag.translated import catalogue

FIRST = "DVG001"


def checks(
    code: str | None = None, /, *, lang: str | None = None, json: bool = False, write: Path | None = None
) -> int:
    """What each check says, why it matters, what it reads, and what to do.

    Args:
        code: print the page of this check, e.g. DVG001; without it the table of all.
        lang: language of the table and of a page, en or zh (default: DPO_DIAG_LANG, else en).
        json: one JSON document on standard output.
        write: write a page for each check and an index into this folder (docs/checks).
    """
    from dpo_diag.diagnosis.checks import CHECKS, all_checks
    from dpo_diag.diagnosis.checks.shared.pages import document, page, write_pages

    say = catalogue(lang)
    if write is not None:
        files = write_pages(write)
        print(to_json({"written": files, "next": after_checks()}) if json else f"wrote {len(files)} files to {write}")
    elif code is not None:
        check = CHECKS[code.upper()]
        print(to_json({**document(check), "next": after_checks()}, indent=2) if json else page(check, say))
    elif json:
        checks_told = [document(check) for check in all_checks()]
        print(to_json({"checks": checks_told, "next": after_checks(FIRST)}, indent=2))
    else:
        rows = [(check.code, *map(say, (check.title, check.severity, check.needs))) for check in all_checks()]
        print(table(("code", "title", "severity", "needs"), rows, terminal_width(unknown=150)))
        say_next(after_checks(FIRST))
    if not json and (write is not None or code is not None):
        say_next(after_checks(), sys.stderr)  # a page may go into a file
    return 0
