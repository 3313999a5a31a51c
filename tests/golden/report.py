"""The visible content of a report.html by section: its text, its tables, and what its drawings say of themselves."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

BLOCKS = frozenset(
    ("p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "summary", "figcaption", "div", "article", "pre", "section")
)
MOST_LINES = 60
UNSEEN = frozenset(("style", "script", "svg", "title", "caption"))
VOID = frozenset(("meta", "link", "br", "img", "input", "hr"))


class _Reader(HTMLParser):
    """Collects per section (by its id); drawings and tables are kept apart from the text."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, dict[str, Any]] = {}
        self._section = self._new("head")
        self._inside: list[str] = []
        self._piece = ""
        self._row: list[str] = []

    def _new(self, name: str) -> dict[str, Any]:
        return self.sections.setdefault(name, {"lines": [], "tables": [], "drawings": []})

    def _flush(self) -> None:
        if line := " ".join(self._piece.split()):
            self._section["lines"].append(line)
        self._piece = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        self._inside.append(tag)
        named = dict(attrs)
        if tag in BLOCKS and "table" not in self._inside:
            self._flush()
        if tag == "section":
            self._section = self._new(named.get("id") or "unnamed")
        elif tag == "svg" and (label := named.get("aria-label")) and label not in self._section["drawings"]:
            self._section["drawings"].append(label)  # each is drawn twice, wide and narrow
        elif tag == "table":
            self._flush()
            self._row = []
            self._section["tables"].append([])
        elif tag == "tr":
            self._row = []
            self._section["tables"][-1].append(self._row)
        elif tag in ("td", "th"):
            self._row.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass
        if tag in BLOCKS and "table" not in self._inside:
            self._flush()

    def handle_data(self, data: str) -> None:
        if UNSEEN & set(self._inside):
            return
        if "table" not in self._inside:
            self._piece += data
        elif self._row:
            self._row[-1] = " ".join(f"{self._row[-1]} {data}".split())


def content(html: str) -> dict[str, Any]:
    """{section: {text, tables, drawings}}: text as one string of lines, long sections cut; table cells as one row."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return {name: _cut(section) for name, section in reader.sections.items() if any(section.values())}


def _cut(section: dict[str, Any]) -> dict[str, Any]:
    lines = section["lines"]
    kept = lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"... {len(lines) - MOST_LINES} more lines"]
    tables = [[" | ".join(row) for row in table] for table in section["tables"]]
    return {"text": "\n".join(kept), "tables": tables, "drawings": section["drawings"]}
