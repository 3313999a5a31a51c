"""OpenAI's preference format: `input` with messages and tools, `preferred_output`, `non_preferred_output`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import decoded
from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.pair import field_of
from dpo_diag.rows.parts import Parts

TITLE = "OpenAI's preference format"


def match(columns: Columns) -> Reading | None:
    """The three columns of the format."""
    names = [columns.find(name) for name in ("input", "preferred_output", "non_preferred_output")]
    if not all(names):
        return None
    asked, good, bad = (str(name) for name in names)

    def parts(row: Mapping[str, Any]) -> Parts:
        source = decoded(field_of(row, asked))
        if not isinstance(source, Mapping) or "messages" not in source:
            raise BadRow("missing field messages", f"{asked} is no object with messages")
        tools = source.get("tools")
        extra = {"tools": tools if isinstance(tools, str) else json.dumps(tools)} if tools else {}
        return Parts(field_of(row, good), field_of(row, bad), source["messages"], chat=True, extra=extra)

    says = f"prompt = messages of {asked}, chosen = {good}, rejected = {bad}"
    return Reading("openai", TITLE, says, frozenset({asked, good, bad}), parts)


FORMS.add(
    "openai",
    RowForm(
        title=TITLE,
        columns="input: {messages, tools}, preferred_output, non_preferred_output",
        pair="prompt = input's messages; its tools go to the chat template",
        match=match,
        example={
            "input": {"messages": [{"role": "user", "content": "Where is Rome?"}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": "In Italy."}],
            "non_preferred_output": [{"role": "assistant", "content": "In Chile."}],
        },
        order=10,
    ),
)
