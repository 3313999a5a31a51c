"""A section of the report."""

from __future__ import annotations

from typing import Any

from dpo_diag.report.section import SECTIONS, Context, Section


def build(context: Context) -> dict[str, Any]:
    return {"n": context.document["n_pairs"]}


SECTIONS.add(
    "toy",
    Section(title="A toy", lead="Pairs.", order=45, needs="n_pairs", build=build, template="<p>{{ n }} toys</p>"),
)
