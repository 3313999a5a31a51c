"""What to change: the explanation's own proposals; the checks below carry theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.report.headline import CHANGE, narrative
from dpo_diag.report.section import SECTIONS, Context, NothingToSay, Section

TEMPLATE = """<ul class="advice">{% for item in proposals %}<li>{{ item|clean|say }}</li>{% endfor %}</ul>"""


def build(context: Context) -> Mapping[str, Any]:
    """The narrative's proposals that no check repeats with its code."""
    parts = [part for part in narrative(context.document) if part.heading == CHANGE]
    proposals = [s for part in parts for s in part.sentences if not s.startswith("DVG")]
    if not proposals:
        raise NothingToSay("the explanation proposes no change")
    return {"proposals": proposals}


SECTIONS.add("change", Section(
    title="What to change", lead="Coefficients are translated for this run; one change at a time.",
    order=60, build=build, template=TEMPLATE,
))  # fmt: skip
