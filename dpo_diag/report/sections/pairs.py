"""The pairs that carry most of the change, with their texts and, where recorded, their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpo_diag.records.schemas import SIDES
from dpo_diag.report.section import SECTIONS, Context, Section
from dpo_diag.report.sections.quadrants import NAMED
from dpo_diag.report.tables import table
from dpo_diag.report.text import clean, one_line
from dpo_diag.report.tokens import TokenLine, token_line, token_texts, tokens_text
from dpo_diag.report.vocabulary import VOCAB_FILE
from dpo_diag.text import number, percent, signed

TEXT_CHARS = 1_500
COLUMNS = {
    "pair_id": "pair, by its chosen answer", "share_of_rise": "share of the rise", "chosen_ce_from": "chosen CE before",
    "chosen_ce_to": "after", "chosen_delta_logp": "Δ chosen, nats", "rejected_delta_logp": "Δ rejected, nats",
}  # fmt: skip
"""Column of the explanation's pairs -> what the table calls it."""
TEMPLATE = """
{% if note %}<p class="{{ note_style }}">{{ note|say }}</p>{% endif %}
{{ ui.table(overview) }}
{% for pair in cards %}
{% set share %} <i>{{ pair.share }}</i>{% endset %}
{% call ui.card(loop.index, pair.title, share, open=loop.first) %}
{% if pair.prompt %}<pre class="asked">{{ pair.prompt }}</pre>{% endif %}
{% for side in pair.sides %}
<section class="side {{ side.name }}"><h4>{{ side.name }}</h4><p class="small">{{ side.summary|say }}</p>
{% if side.text %}<pre>{{ side.text }}</pre>{% endif %}
{% if side.line.tokens %}
<div class="toks">
{%- for t in side.line.tokens -%}
<span class="tok {{ t.style }}{{ " glued" if t.is_glued }}">
{#- -#}
<span class="t{{ " id" if t.is_id }}">{{ t.text }}</span><b>{{ t.change }}</b></span>
{%- endfor -%}
</div>
{% endif %}
{% if side.left_out %}<p class="small">{{ ("Left out: " ~ side.left_out ~ ".")|say }}</p>{% endif %}
</section>
{% endfor %}
{% endcall %}
{% endfor %}
"""


@dataclass(frozen=True)
class Side:
    """One answer of a pair: what its change is, its text where the tokens do not show it, its tokens."""

    name: str
    summary: str
    text: str
    line: TokenLine

    @property
    def left_out(self) -> str:
        """How many tokens are not shown, and where they are."""
        counts = {"before": self.line.before, "after": self.line.after}
        return ", ".join(f"{n} tokens {where}" for where, n in counts.items() if n)


@dataclass(frozen=True)
class Card:
    """One pair."""

    title: str
    share: str
    prompt: str
    sides: tuple[Side, ...]


def build(context: Context) -> Mapping[str, Any]:
    """A table of the named pairs, then one card each."""
    if not context.document.get("pairs"):
        context.require("quadrants")  # it knows why there are none
    named = pd.DataFrame(context.require("pairs")[:NAMED])
    ids = [str(i) for i in named["pair_id"]]
    # The document's rows are made for reading; the numbers of every aligned pair are in `explanation.pairs`.
    known = context.explanation.pairs
    pairs = named[["pair_id"]].merge(known, on="pair_id", how="left") if len(known) else named
    if "share_of_rise" in named:
        pairs["share_of_rise"] = named["share_of_rise"].astype(float)
    texts = context.explanation.texts(ids)
    tokens = context.explanation.tokens(ids)
    answers = {
        (str(row["pair_id"]), side): row[side]
        for row in texts.to_dict("records") for side in SIDES if isinstance(row[side], str)
    }  # fmt: skip
    note, style = "", "small"
    if tokens.empty:
        note = "Token heat map: not applicable. The run has no token records of both steps."
        style = "na"
    else:
        tokens = tokens.assign(text=token_texts(context.run, tokens, answers))
        if tokens["text"].isna().any():
            note = f"Tokens are shown by id: there is no {VOCAB_FILE} or tokenizer.json, and the texts do not align."
    shown = [c for c in COLUMNS if c in pairs]
    called = [one_line(row.get("chosen_text") or row["pair_id"], 60) for row in context.document["pairs"][:NAMED]]
    numbered = pairs[shown].assign(pair_id=[f"{i + 1}. {name}" for i, name in enumerate(called)])
    formats = {"share_of_rise": _share, "chosen_delta_logp": signed, "rejected_delta_logp": signed}
    prompts = {str(row["pair_id"]): row["prompt"] for row in texts.to_dict("records")}
    return {
        "note": note,
        "note_style": style,
        "overview": table(
            numbered, "the pairs that carry most of the change", names=COLUMNS,
            formats={c: f for c, f in formats.items() if c in shown},
        ),
        "cards": [_card(row, prompts.get(str(row["pair_id"])), answers, tokens) for row in pairs.to_dict("records")],
    }  # fmt: skip


def _share(value: Any) -> str:
    return percent(value, 1)


def _card(row: Mapping[Any, Any], prompt: Any, answers: Mapping[tuple[str, str], str], tokens: pd.DataFrame) -> Card:
    sides = []
    for side in SIDES:
        of = tokens.loc[(tokens["pair_id"] == row["pair_id"]) & (tokens["side"] == side)]
        summary = tokens_text(of)
        if not summary and f"{side}_delta_logp" in row:
            count = number(row.get(f"{side}_n_tokens"))
            summary = f"{signed(row[f'{side}_delta_logp'])} nats over {count} tokens"
        is_spelled = len(of) > 0 and bool(of["text"].notna().all())
        text = "" if is_spelled else clean(answers.get((str(row["pair_id"]), side), ""), TEXT_CHARS)
        sides.append(Side(side, summary, text, token_line(of) if len(of) else TokenLine()))
    known = isinstance(prompt, str)
    title = one_line(prompt, 110) if known else "its text is not in the records"
    return Card(title, _share(row.get("share_of_rise")), clean(prompt, TEXT_CHARS) if known else "", tuple(sides))


SECTIONS.add("pairs", Section(
    title="The pairs that carry it",
    lead="Each token stands over its change of log-prob in nats: -0.7 halves its probability; a dot is under 0.05.",
    order=50, build=build, template=TEMPLATE,
))  # fmt: skip
