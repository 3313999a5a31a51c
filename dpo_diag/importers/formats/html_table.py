"""A table in an HTML page: pandas' `to_html`, or the progress table of a notebook that was saved as HTML.

The first table whose header names a step and a metric, or two metrics, is taken; its rows are read as those of a
printed table.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.formats.printed_table import is_header, read_lines
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.records.text_files import whole

_PAGE = re.compile(r"<(?:!doctype html|html|table|div|style)\b", re.IGNORECASE)


class _Tables(HTMLParser):
    """Every table's rows: (line, cells); what stands in a cell is its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[tuple[int, list[str]]]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
            self._in_cell = False
        elif tag == "tr" and self.tables:
            self.tables[-1].append((self.getpos()[0], []))
            self._in_cell = False
        elif tag in ("td", "th") and self.tables and self.tables[-1]:
            self.tables[-1][-1][1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th", "tr", "table")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            cells = self.tables[-1][-1][1]
            cells[-1] += " ".join(data.replace("|", "/").split())


def read_html_table(path: Path, options: Options) -> Parsed:
    """Read the rows of the first table of a log.

    Raises:
        DiagError: no table of the page is one of a log.
    """
    parsed, page = Parsed.of("html", [path], options), _Tables()
    page.feed(whole(path, parsed.skipped).decode("utf-8", "replace"))
    logs = [table for table in page.tables if any(is_header(cells) for _, cells in table)]
    if not logs:
        raise DiagError(
            "no table of a log in the page", where=path, got=f"{len(page.tables)} tables",
            expected="one with a step and a loss, rewards or log-probs", hint="export the log itself: df.to_csv(PATH)",
        )  # fmt: skip
    if len(logs) > 1:
        parsed.notes.append(f"{len(logs)} tables of a log in the page; the first is taken")
    return read_lines(((line, f"| {' | '.join(cells)} |") for line, cells in logs[0] if cells), parsed, path, options)


register(
    LogFormat(
        name="html",
        description="table in an HTML page (pandas' to_html, a notebook saved as HTML)",
        trainers=("pandas", "notebooks"),
        file_name="notebook.html",
        example="<table><tr><th>Step</th><th>Training Loss</th></tr><tr><td>10</td><td>0.693100</td></tr></table>\n",
        order=39,
        why="begins as a page of HTML",
        sniff=lambda head: _PAGE.match(head.text) is not None,
        read=read_html_table,
        rounding=2,
    )
)
