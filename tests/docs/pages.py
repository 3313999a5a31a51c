"""README, CONTRIBUTING and the pages of docs/ as what tests ask of them: code blocks, inline code, links, anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
"""Stands in the line before a block whose commands no test can run, with the reason."""
_EXITS = re.compile(r"#.*\bexits (\d)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line, and why it is not run (None: it is)."""

    language: str
    text: str
    line: int
    not_run: str | None


@dataclass(frozen=True)
class Command:
    """One line of a shell block: its words without the comment, and the exit status that the comment promises."""

    words: tuple[str, ...]
    status: int
    line: int


@dataclass(frozen=True)
class Page:
    """A Markdown file, by its path from the root of the repository."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @property
    def generated(self) -> bool:
        return "<!-- made from" in self.path.read_text(encoding="utf-8")[:300]

    @property
    def tokens(self) -> list[Token]:
        return _parsed(self.path)

    @property
    def inline(self) -> Iterator[Token]:
        for token in self.tokens:
            yield from token.children or ()

    @property
    def blocks(self) -> Iterator[Block]:
        reason = None
        for token in self.tokens:
            if token.type == "fence":
                line = (token.map or [0])[0] + 1
                yield Block(token.info.strip(), token.content, line, reason)
            said = NOT_RUN.search(token.content) if token.type == "html_block" else None
            reason = said[1] if said else None

    @property
    def code(self) -> list[str]:
        """Inline code."""
        return [token.content for token in self.inline if token.type == "code_inline"]

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures, those of HTML tags included."""
        found = [
            str(t.attrs.get("href") or t.attrs.get("src")) for t in self.inline if t.type in ("link_open", "image")
        ]
        html = "".join(t.content for t in self.tokens if t.type == "html_block")
        return found + re.findall(r'(?:src|srcset|href)="([^"]+)"', html)

    @property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub and MkDocs make them of plain words."""
        headings = [self.tokens[i + 1].content for i, t in enumerate(self.tokens) if t.type == "heading_open"]
        return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@cache
def _parsed(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def commands(block: Block) -> Iterator[Command]:
    """The lines of a shell block; `A | B` is A."""
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        words = shlex.split(line, comments=True)
        if words:
            promised = _EXITS.search(line)
            yield Command(tuple(words), int(promised[1]) if promised else 0, number)


PAGES = [
    Page(str(path.relative_to(ROOT)))
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "CHANGELOG.md"
]
WRITTEN = [page for page in PAGES if not page.generated]
"""Pages that a person wrote."""
