"""A check's page, made from its file: for `dpo-diag checks DVG001` and docs/checks/."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpo_diag.config import conf_dir
from dpo_diag.diagnosis.checks import all_checks
from dpo_diag.diagnosis.checks.shared.check import Check
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.text import capital
from dpo_diag.thresholds import defaults
from dpo_diag.translated import Catalogue, catalogue

_REASON = re.compile(r"^( *)(\w+):(?: +[^\s#]\S*)?(?: +# (.+))?$", re.MULTILINE)
"""A name of the thresholds' file, how far it is indented, and the comment behind it."""
_MADE = "<!-- made from {file} by dpo-diag checks --write: edit that file, not this one -->\n\n"


def page(check: Check, say: Catalogue | None = None) -> str:
    """The page in Markdown; `say`: its language, for English None. Tables and examples are in English."""
    say = say or catalogue("en")

    def heading(text: str) -> str:
        return f"## {say(text)}\n\n"

    sections = [
        f"# {check.code} {say(check.title)}",
        say(check.says),
        say(f"Severity: {check.severity}. Since version {check.since}."),
        heading("Why it matters") + say(check.why),
        heading("What it needs") + say(f"{capital(check.needs)}."),
        heading("What its evidence holds") + _table(("key", "meaning"), _evidence(check)),
    ]
    thresholds = list(_thresholds(check))
    if thresholds:
        how = f"Set one for a run: `dpo-diag explain RUN {check.reads[0] if check.reads else thresholds[0][0]}=...`."
        sections.append(heading("Thresholds") + _table(("name", "default", "why"), thresholds) + f"\n\n{how}")
    sections += [
        heading("An example that speaks") + _example(check, check.bad),
        heading("An example that is silent") + _example(check, check.good),
        heading("Known false alarms") + _list([say(line) for line in check.false_alarms]),
        heading("What to try") + _list([say(str(line)) for line in check.advice]),
    ]
    if check.sources:
        sections.append(heading("Sources") + _list(check.sources))
    return "\n\n".join(sections) + "\n"


def index() -> str:
    """The list of all checks in Markdown, each with a link to its page."""
    rows = [(f"[{c.code}]({c.code}.md)", c.title, c.severity, c.needs) for c in all_checks()]
    return (
        "# Checks\n\n`dpo-diag explain` runs every check on a run. Each speaks, is silent, or says why it cannot "
        'apply; where an effect lies inside its noise it says "cannot tell".\n\n'
        + _table(("code", "title", "severity", "needs"), rows)
        + "\n"
    )


def document(check: Check) -> dict[str, Any]:
    """The page's content for JSON."""
    return {
        "code": check.code, "title": check.title, "severity": check.severity, "since": check.since,
        "says": check.says, "why": check.why, "needs": check.needs, "evidence": dict(check.evidence),
        "thresholds": {name: defaults()[name] for name in check.reads} | dict(check.thresholds),
        "false_alarms": list(check.false_alarms), "try": [str(line) for line in check.advice],
        "sources": list(check.sources),
        "examples": {"speaks": _answer(check, check.bad), "silent": _answer(check, check.good)},
    }  # fmt: skip


def write_pages(folder: Path) -> list[str]:
    """Write index.md and a page for each check; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{check.code}.md": (_source(check), page(check)) for check in all_checks()}
    pages["index.md"] = ("the checks' files", index())
    for name, (file, text) in pages.items():
        (folder / name).write_text(_MADE.format(file=file) + text, encoding="utf-8")
    return sorted(pages)


def _source(check: Check) -> str:
    """The module that registered the check, as a path."""
    return check.function.__module__.replace(".", "/") + ".py"


def _evidence(check: Check) -> list[tuple[str, str]]:
    return [(f"`{key}`", meaning) for key, meaning in check.evidence.items()]


def _thresholds(check: Check) -> Iterator[tuple[str, str, str]]:
    """Name, default and reason of every threshold that decides the check."""
    reasons, below = {}, ""
    for indented, name, reason in _REASON.findall((conf_dir() / "checks" / "default.yaml").read_text(encoding="utf-8")):
        if not indented:
            below = f"{name}."
        reasons[f"{below}{name}" if indented else name] = reason
    for name in check.reads:
        yield f"`{name}`", f"{defaults()[name]:g}", reasons.get(name, "")
    for name, value in check.thresholds.items():
        yield f"`{name}`", f"{value:g}", ""


def _answer(check: Check, example: Example) -> dict[str, str]:
    """What happens in an example, and what the check answers."""
    with tempfile.TemporaryDirectory() as folder:
        finding = check.run(CheckContext.from_run(example.write(folder)), {**defaults(), **check.thresholds})
    return {"shows": example.shows, "outcome": finding["outcome"], "reason": finding["reason"]}


def _example(check: Check, example: Example) -> str:
    answer = _answer(check, example)
    holds = "\n".join(example.lines())
    return f'{answer["shows"]}\n\n```\n{holds}\n```\n\nAnswer: {answer["outcome"]}, "{answer["reason"]}".'


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
