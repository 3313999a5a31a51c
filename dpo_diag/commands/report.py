"""`dpo-diag report`: one self-contained HTML file about a run; its path alone on the last line."""

from __future__ import annotations

import sys
import time
import webbrowser
from pathlib import Path

from dpo_diag.next_steps import after_report, say_next
from dpo_diag.records import load_run


def report(run: Path, /, *, out: Path | None = None, open_less: bool = False) -> int:
    """One self-contained HTML file about a run.

    Args:
        run: a run folder.
        out: where to write (default: RUN/report.html).
        open_less: only write the file; do not offer it to a browser.
    """
    opened = load_run(run)
    from dpo_diag.report import write_report

    started = time.monotonic()
    print("reading the records, explaining, comparing the outputs ...", file=sys.stderr)
    path = write_report(opened, out)
    size = path.stat().st_size / 1e6
    print(f"{size:.1f} MB in {time.monotonic() - started:.1f} s; it loads nothing from a network", file=sys.stderr)
    # Opened where a person sits: never in a pipe, in CI, or without a display.
    if not open_less and sys.stdout.isatty() and sys.stdin.isatty():
        webbrowser.open(path.resolve().as_uri())
    say_next(after_report(opened), sys.stderr)
    print(path)
    return 0
