"""`dpo-diag report`: one self-contained HTML file about a run, or about two; its path alone on the last line."""

from __future__ import annotations

import sys
import time
import webbrowser
from pathlib import Path

from dpo_diag.command_lines import line, say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_report, after_report_of_two
from dpo_diag.records import load_run
from dpo_diag.translated import catalogue


def report(
    run: Path,
    /,
    *,
    against: Path | None = None,
    out: Path | None = None,
    lang: str | None = None,
    open_less: bool = False,
) -> int:
    """One self-contained HTML file about a run, or about two side by side.

    Args:
        run: a run folder.
        against: another run to hold it against: what differs, both verdicts, paired intervals, curves, answers.
        out: where to write (default: RUN/report.html, or RUN/report-against-NAME.html).
        lang: language of the page, en or zh (default: DPO_DIAG_LANG, else en); the JSON inside is English.
        open_less: only write the file; do not offer it to a browser.
    """
    say = catalogue(lang)
    for path in (run, against):
        if path is not None and path.is_file():
            hint = f"{line('dpo-diag', 'import', path, '--out', 'RUN')}, then {line('dpo-diag', 'report', 'RUN')}"
            raise DiagError("a report is of a run folder", got=f"a file, {path}", hint=hint)
    opened, other = load_run(run), None if against is None else load_run(against)
    from dpo_diag.report import write_report, write_two_runs

    started = time.monotonic()
    print("reading the records, explaining, comparing the outputs ...", file=sys.stderr)
    path = write_report(opened, out, say=say) if other is None else write_two_runs(opened, other, out, say)
    size = path.stat().st_size / 1e6
    print(f"{size:.1f} MB in {time.monotonic() - started:.1f} s; it loads nothing from a network", file=sys.stderr)
    # Opened where a person sits: never in a pipe, in CI, or without a display.
    if not open_less and sys.stdout.isatty() and sys.stdin.isatty():
        webbrowser.open(path.resolve().as_uri())
    following = after_report(opened) if other is None else after_report_of_two(opened.path, other.path)
    say_next(following, sys.stderr)
    print(path)
    return 0
