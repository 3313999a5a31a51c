"""docs/forms.md, made from the forms: `python -m dpo_diag.rows.page docs/forms.md`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dpo_diag.rows.form import FORMS

_HEAD = """# Forms of row files

<!-- made from dpo_diag/rows/forms by python -m dpo_diag.rows.page: edit those files, not this one -->

`data=jsonl data.path=FILE` reads JSON lines, a JSON document, CSV (`,` `;` tab) and Parquet, compressed or not.
Several files: `data.path=a.jsonl,b/*.parquet` or a list. `data=hub data.name=ID data.config=NAME` reads a data set.

The columns of a file's first rows decide its form, once; forms are asked in this order. What was recognised is printed
and stands in `data_report.json`, with the columns of text that the model does not see. A row that does not fit is
refused and listed in `data_issues.csv`; nothing falls back to plain text.
"""
_TAIL = """
- **Answers** may be called `chosen_response`, `response_chosen`, `preferred`/`dispreferred`, `winner`/`loser`,
  `response_j`/`response_k`, `response` beside `rejected_response`, ...; each is text, an object (`{"text": ...}`), a
  message or messages (`role`/`content`, `from`/`value`, `author`, `speaker`/`text`).
- **Cells of text** that hold messages are read: JSON, what Python or numpy prints, ChatML. What begins like one and
  cannot be read is refused: a model would learn to write it.
- **Columns** can be named: `data.columns.prompt=headline data.columns.chosen=good data.columns.rejected=bad`; a list
  (`data.columns.prompt=[question,schema]`) is joined line under line; `false` leaves a column out
  (`data.columns.system=false`). `data.form=NAME` takes a form as given: NAME_LIST.
- **A question is a user's turn** for the chat template; `data.chat=false` makes it plain text, `data.chat=true` makes a
  plain prompt a turn.
- **An implicit prompt of text** ends with a turn's mark (`Assistant:`, `Answer:`, a template's), a line or a sentence,
  and is at least `rows.implicit_prompt_min_share` of the responses long; `data.implicit_prompt=any` takes any shared
  beginning, as TRL does.
"""


def page() -> str:
    """The page in Markdown."""
    forms = sorted(FORMS.items(), key=lambda item: (item[1].order, item[0]))
    rows = ["| form | name | columns | read as | example |", "| --- | --- | --- | --- | --- |"]
    for name, form in forms:
        example = json.dumps(form.example).replace("|", "\\|")
        rows.append(f"| {form.title} | `{name}` | {form.columns} | {form.pair} | `{example}` |")
    names = ", ".join(f"`{name}`" for name in sorted(FORMS))
    return "\n".join([_HEAD, *rows, _TAIL.replace("NAME_LIST", names)])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    else:
        print(page())
