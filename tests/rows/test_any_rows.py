"""Whatever the rows of a file hold: each becomes a pair or a reason, and nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_diag.errors import DiagError
from dpo_diag.records.conversation import prompt_text
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.form import FORMS, How, recognise

MORE = ["context", "messages", "response_a", "response_b", "winner", "score_0", "score_1", "generations", "ratings",
        "ranks", "history", "images", "human_ref_A", "human_ref_B", "chat_template_kwargs", "tools"]  # fmt: skip
NAMES = sorted({*MORE, *(name for form in FORMS.values() for name in form.example)})
CHATML = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
PRINTED = ["[{'role': 'user', 'content': 'x'}]", "{}", "[1, 2]", "['a' 'b']"]
WORDS = st.sampled_from(["", " ", "a", "Why? Because.", "1", "-1", "b", "tie", CHATML, "\ud800", *PRINTED])
SCALARS = st.none() | st.booleans() | st.integers(-2, 3) | st.floats(allow_nan=True) | WORDS
KEYS = st.sampled_from(["role", "content", "from", "value", "text", "answer", "rank", "rating", "messages", "tools"])
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "gpt", "?"])
MESSAGE = st.fixed_dictionaries({"role": ROLES}, optional={"content": WORDS | st.lists(WORDS, max_size=2)})
VALUES = st.recursive(
    SCALARS | st.lists(MESSAGE, min_size=1, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=7), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, chat=st.none() | st.booleans(), printed=st.booleans())
@example(
    rows=[{"instruction": "a", "answers": [{"answer": "a", "rank": 1}]}, {"answers": [1]}], chat=None, printed=False
)
def test_a_row_is_a_pair_or_a_reason(rows: list[dict[str, Any]], chat: bool | None, printed: bool) -> None:
    if printed:
        rows = [
            {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
            for row in rows
        ]
    try:
        reading = recognise(rows, How(chat=chat))
    except DiagError:
        return
    for row in rows:
        try:
            pair = reading.pair(row)
        except BadRow as bad:
            assert bad.why and len(bad.why) < 60 and "\n" not in bad.why
            continue
        sides = (pair.prompt, pair.chosen, pair.rejected)
        assert len({isinstance(side, str) for side in sides}) == 1 and pair.chosen != pair.rejected
        assert all(prompt_text(side).strip() for side in sides) and len(pair.pair_id) == 16
