"""The report: one run's page, its verdict first, then the sections that it has something for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from dpo_diag.diagnosis import Explanation, explain_run
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_explain
from dpo_diag.outputs import compare, comparison
from dpo_diag.outputs.answers import POLICY
from dpo_diag.outputs.compare import to_document
from dpo_diag.records import Run, load_run
from dpo_diag.report.headline import headline
from dpo_diag.report.html import fragment, page, write_page
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, NothingToSay, Section
from dpo_diag.report.unknown import unknown
from dpo_diag.text import plural
from dpo_diag.translated import Catalogue, catalogue

REPORT_FILE = "report.html"
DOCUMENT = "explanation"
"""Id of the element that holds the explain document."""
BOX = 90
"""Order from which sections stand below what the run cannot tell."""


@dataclass(frozen=True)
class Drawn:
    """A section as the page takes it; `missing` is the reason why `body` is empty, "" where there is nothing to say."""

    id: str
    title: str
    lead: str
    body: Markup
    missing: str


def render(run: Run, explanation: Explanation, answers: Mapping[str, Any], say: Catalogue | None = None) -> str:
    """The page's text, in English where `say` names no other language; the document inside is English in every one.
    Deterministic for the same records and documents."""
    context = Context(run, explanation, answers)
    in_order = sorted(SECTIONS.items(), key=lambda item: item[1].order)
    drawn = [(section.order, draw(name, section, context, say)) for name, section in in_order]
    known = [(order, section) for order, section in drawn if section.body]
    return page(
        "report.html",
        {
            "head": headline(context),
            "sections": [section for order, section in known if order < BOX],
            "unknown": unknown(context, [(section.title, section.missing) for _, section in drawn if section.missing]),
            "below": [section for order, section in known if order >= BOX],
        },
        {DOCUMENT: printed_document(run, context.document)},
        say,
    )


def printed_document(run: Run, document: Mapping[str, Any]) -> dict[str, Any]:
    """What `dpo-diag explain RUN --json` prints."""
    return {**document, "next": after_explain(run.path, document) if "verdict" in document else []}


def draw(name: str, section: Section, context: Context, say: Catalogue | None = None) -> Drawn:
    missing = ""
    try:
        if section.needs:
            context.require(section.needs)
        shown = section.build(context)
        title, lead = (str(shown.get(f"section_{key}", getattr(section, key))) for key in ("title", "lead"))
        return Drawn(name, title, lead, fragment(section.template, shown, say), "")
    except NothingToSay:
        pass
    except NotApplicable as reason:
        missing = str(reason)
    return Drawn(name, section.title, section.lead, Markup(), missing)


def write_report(
    run: Run | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    explanation: Explanation | None = None,
    say: Catalogue | None = None,
) -> Path:
    """Write the report of a run and return its path.

    Args:
        run: an open run or its folder.
        path: where to write; RUN/report.html if None. The file is replaced in one move, never half written.
        explanation: of the run, where it was made already; made from the records if None. What cannot be computed is
            not applicable in the page, with the reason.
        say: the language of its words; None: that of DPO_DIAG_LANG, or English.

    Raises:
        DiagError: the run cannot be read, or the file cannot be written.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    target = Path(path) if path is not None else opened.path / REPORT_FILE
    known = explanation if explanation is not None else explained(opened)
    return write_page(render(opened, known, compared(opened), say or catalogue()), target)


def explained(run: Run) -> Explanation:
    """The run's explanation; one that says why there is none where it cannot be made."""
    try:
        return explain_run(run)
    except DiagError as error:
        return Explanation({"not_applicable": str(error)}, None, pd.DataFrame())


def compared(run: Run) -> dict[str, Any]:
    """What its checkpoints wrote, compared; {"not_applicable": reason} where there is nothing to compare."""
    if not run.has("outputs"):
        return {"not_applicable": "the run has no outputs"}
    try:
        return dict(compare(run))
    except DiagError as error:
        return _of_one_decoding(run, error)


def _of_one_decoding(run: Run, refused: DiagError) -> dict[str, Any]:
    """The answers of the decoding that most of the policy's have, where those of several cannot be compared."""
    rows = run.outputs
    hashes = rows.loc[rows["model"] == POLICY, "decoding_hash"].dropna()
    if not len(hashes):
        return {"not_applicable": str(refused)}
    alike = rows.loc[rows["decoding_hash"] == hashes.mode().iloc[0]]
    try:
        document = to_document(run, comparison(alike, texts=run.texts))
    except DiagError:
        return {"not_applicable": str(refused)}
    left_out = plural(len(rows) - len(alike), "answer")
    return {**document, "note": f"Left out: {left_out} that another decoding setting gave."}
