"""Links lead somewhere, generated pages are what the code gives, what pages name exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from docs.make.__main__ import DOCS
from docs.make.__main__ import PAGES as GENERATED
from dpo_diag import __version__
from dpo_diag.commands.diag import COMMANDS, make_app
from dpo_diag.commands.hydra_app import SCHEMAS
from dpo_diag.commands.overrides import explain_override
from dpo_diag.config import conf_dir
from tests.docs.pages import PAGES, ROOT, WRITTEN, Page

README = Page("README.md")
APPS = {"dpo-train": "config", "dpo-score": "score", "dpo-generate": "generate"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Page) -> None:
    broken = []
    for link in page.links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = (page.path.parent / target).resolve() if target else page.path
        anchors = Page(str(path.relative_to(ROOT))).anchors if path.suffix == ".md" and path.is_file() else set()
        if not path.exists() or (path.suffix == ".md" and anchor and anchor not in anchors):
            broken.append(link)
    assert broken == []


def test_a_page_of_the_site_links_to_pages_of_the_site_alone() -> None:
    """The site holds docs/ and nothing beside it."""
    links = [(p.name, link) for p in PAGES if p.name.startswith("docs/") for link in p.links if "://" not in link]
    outside = [
        (name, link) for name, link in links
        if not (ROOT / name).parent.joinpath(link.partition("#")[0]).resolve().is_relative_to(DOCS)
    ]  # fmt: skip
    assert outside == []


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_what_the_code_gives(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == GENERATED[name](), "make pages"


def test_every_page_stands_in_the_navigation() -> None:
    """As `make docs` demands it: all pages but those of single checks, which their index lists."""
    said = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {p.name.removeprefix("docs/") for p in PAGES if p.name.startswith("docs/")}
    assert {p for p in pages if not re.match(r"checks/DVG", p)} == said


def test_readme_begins_with_the_two_commands_and_a_light_picture() -> None:
    first = next(README.blocks)
    assert [line.split("#")[0].strip() for line in first.text.splitlines()] == ["make demo", "make test"]
    pictures = sorted((DOCS / "pictures").iterdir())
    assert [p.name for p in pictures] == ["report-dark.png", "report-light.png"]
    assert sum(p.stat().st_size for p in pictures) < 300_000


def test_every_extra_stands_with_what_it_weighs() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(package["project"]["optional-dependencies"]) - {"dev", "docs"}
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| \d+ \|$", (DOCS / "install.md").read_text(encoding="utf-8"), flags=re.M)
    assert extras == set(rows)


def test_changelog_names_every_command_and_the_version_with_its_date() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}`" not in changes and f"dpo-diag {name}`" not in changes] == []
    sections = re.findall(r"^## (.+)$", changes, flags=re.M)
    assert sections[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+, \d{4}-\d{2}-\d{2}", section) for section in sections[1:])
    assert sections[1].startswith(f"{__version__}, ")


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_inline_commands_and_options_exist(page: Page) -> None:
    """`dpo-diag explain RUN --destination` parses, `dpo-train loss=ipo` composes, `peft=qlora` is an option."""
    wrong = [(code, reason) for code in page.code if (reason := _why_not(code))]
    assert wrong == []


def _why_not(code: str) -> str | None:
    words = [re.sub(r"\b[A-Z]{2,}\b(?!\d)", "1", word) for word in code.split()]
    if words and words[0] == "dpo-diag" and words[1:] not in [[name] for name in ("", *COMMANDS)]:
        try:
            make_app().parse_args(words[1:], exit_on_error=False, print_error=False)
        except CycloptsError as error:
            return str(error)
    overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
    if words and words[0] in APPS:
        return explain_override(overrides, SCHEMAS[APPS[words[0]]])
    for group, _, option in (word.partition("=") for word in overrides if len(words) == 1):
        known = {path.stem for path in (conf_dir() / group).glob("*.yaml")} if "." not in group else set()
        if known and option and option not in {*known, "1"}:
            return f"{group} is one of {sorted(known)}"
    return None


def test_sections_of_the_design_that_docstrings_name_exist() -> None:
    """`DESIGN section 2.4` is the fourth item of the second section's list."""
    design = (DOCS / "design.md").read_text(encoding="utf-8")
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "dpo_diag").rglob("*.py"))
    named = {section for text in sources for section in re.findall(r"DESIGN section (\d(?:\.\d)?)", text)}
    assert named
    for section, _, item in (name.partition(".") for name in sorted(named)):
        (body,) = re.findall(rf"^## {section}\. (.*?)(?=^## |\Z)", design, flags=re.M | re.S)
        assert not item or re.search(rf"^{item}\. ", body, flags=re.M)


def test_every_paper_that_the_code_names_has_its_line_among_the_methods() -> None:
    paper = re.compile(r"arxiv(?:\.org/abs/|:)?[\s#*]*(\d{4}\.\d{4,5})", re.IGNORECASE)
    sources = [*(ROOT / "dpo_diag").rglob("*.py"), *conf_dir().rglob("*.yaml")]
    named = {number for path in sources for number in paper.findall(path.read_text(encoding="utf-8"))}
    assert named == set(paper.findall((DOCS / "methods.md").read_text(encoding="utf-8"))), "docs/methods.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_text_is_taken_for_a_tag(page: Page) -> None:
    """`eval_<name>` outside of code is read as an unknown tag and vanishes."""
    tags = [token.content for token in page.inline if token.type == "html_inline"]
    blocks = [
        t.content for t in page.tokens if t.type == "html_block" and not t.content.startswith(("<!--", "<picture>"))
    ]
    assert tags + blocks == []


def test_docs_are_read_without_this_machines_paths() -> None:
    pages: list[Path] = [page.path for page in PAGES]
    assert [p.name for p in pages if str(ROOT) in p.read_text(encoding="utf-8")] == []
