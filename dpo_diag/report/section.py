"""What a section of the page is, and what it is built from.

A section is one entry of SECTIONS, made in one file: what it says of itself, what it needs, a function from the context
to the data that it shows, and the template that shows them. The built-in ones are the files of `sections/`; a plugin
adds another in the same way:

    SECTIONS.add("lengths", Section(
        title="Answer lengths", lead="In tokens.", order=75, needs="pairs", build=lambda context: {"n": 3},
        template="<p>{{ n }} pairs</p>",
    ))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpo_diag.diagnosis import Explanation
from dpo_diag.diagnosis.logged import measured_split
from dpo_diag.records import Run
from dpo_diag.registry import Registry


class NotApplicable(Exception):
    """The run cannot fill a section; the text is the reason, without a full stop."""


class NothingToSay(NotApplicable):
    """The run could fill a section, and there is nothing to put in it: the page leaves it out without a word."""


@dataclass(frozen=True, eq=False)
class Context:
    """One run with what is known about it: explained once, compared once.

    Attributes:
        explanation: its document, pairs and tokens; the document is {"not_applicable": reason} where that failed.
        comparison: the outputs document (see `dpo_diag.outputs.compare`), or {"not_applicable": reason}.
    """

    run: Run
    explanation: Explanation
    comparison: Mapping[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """The explain document (DESIGN section 6)."""
        return self.explanation.document

    @cached_property
    def split(self) -> str | None:
        """The split whose curves are shown: the explained one, if its history was recorded."""
        return measured_split(self.run, self.document.get("split")) or self.document.get("split")

    @property
    def loss_label(self) -> str:
        """What people call the run's loss: "DPO loss" for the sigmoid's and where nothing names it, "ipo loss"."""
        info = self.run.info
        names = list(info.loss.types if info.loss is not None else info.loss_names)
        if info.method == "sft":
            return "SFT loss"
        return "DPO loss" if names in ([], ["sigmoid"]) else f"{' + '.join(names)} loss"

    def require(self, part: str) -> Any:
        """A part of the document.

        Raises:
            NotApplicable: it is missing, empty, or not applicable itself.
        """
        value = self.document.get(part)
        reason = value.get("not_applicable") if isinstance(value, dict) else None
        if reason or not value:
            raise NotApplicable(str(reason or self.document.get("not_applicable") or f"the explanation has no {part}"))
        return value


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        title, lead: its heading, and the line under it.
        order: its place in the page; what it writes at 5, the curves at 10, then 20, 30, ...; from 90 on below what
            the run cannot tell.
        build: what the template shows, by name; a `section_title` or `section_lead` among it takes the place of the
            section's own. Raises NotApplicable where the run lacks it.
        template: jinja2 text, escaped as every template here; `ui` holds the macros of templates/macros.html, and
            `number`, `signed`, `percent`, `clean` and `say` (in the page's language) are filters.
        needs: a key of the explain document without which there is nothing to show; "" for none.
    """

    title: str
    lead: str
    order: int
    build: Callable[[Context], Mapping[str, Any]]
    template: str
    needs: str = ""


SECTIONS: Registry[Section] = Registry("report section", "dpo_diag.report.sections")
"""The section's id in the page (letters, digits, hyphens) -> section."""
