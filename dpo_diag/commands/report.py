"""`dpo-diag report`: one self-contained HTML file about a run; its path alone on the last line."""

from __future__ import annotations

import argparse
import sys
import time
import webbrowser
from pathlib import Path

from dpo_diag.records import load_run
from dpo_diag.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--out", metavar="FILE", help="where to write (default: RUN/report.html)")
    parser.add_argument("--open-less", action="store_true", help="only write the file: do not offer it to a browser")


def run(args: argparse.Namespace) -> int:
    opened = load_run(args.run)
    started = time.monotonic()
    print("reading the records, explaining, comparing the outputs ...", file=sys.stderr)
    path = write_report(opened, args.out)
    size = path.stat().st_size / 1e6
    print(f"{size:.1f} MB in {time.monotonic() - started:.1f} s; it loads nothing from a network", file=sys.stderr)
    if not args.open_less:
        _offer(path)
    print(path)
    return 0


def _offer(path: Path) -> None:
    """Open the page where a person sits: never in a pipe, in CI, or without a display."""
    if sys.stdout.isatty() and sys.stdin.isatty():
        webbrowser.open(path.resolve().as_uri())
