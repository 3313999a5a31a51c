"""Which of the run's checkpoints to keep, why, and which may go: only where there are some beside the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.diagnosis.keep import keep, lines
from dpo_diag.errors import DiagError
from dpo_diag.records.saved import saved_checkpoints
from dpo_diag.report.section import SECTIONS, Context, NothingToSay, Section
from dpo_diag.report.tables import table

TEMPLATE = """{% for line in lines %}<p>{{ line }}</p>{% endfor %}{{ ui.table(checkpoints) }}"""


def build(context: Context) -> Mapping[str, Any]:
    """The sentences of `dpo-diag keep`, and its table."""
    if not saved_checkpoints(context.run.path):
        raise NothingToSay("there are no checkpoints beside the records")
    try:
        document = keep(context.run)
    except DiagError as error:
        raise NothingToSay(str(error)) from error
    said = lines(document)
    sentences = said[: said.index("")] if "" in said else said
    columns = {
        "step": "checkpoint", "value": document["metric"], "behind": "behind the best", "error": "standard error",
        "verdict": "verdict", "why": "why",
    }  # fmt: skip
    frame = pd.DataFrame(document["checkpoints"])[list(columns)]
    return {"lines": sentences, "checkpoints": table(frame, "the checkpoints on disk", names=columns)}


SECTIONS.add("keep", Section(
    title="Which checkpoint to keep", lead="The earliest within the noise of the best one. Nothing was deleted.",
    order=80, build=build, template=TEMPLATE,
))  # fmt: skip
