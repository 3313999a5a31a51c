"""Token rows with their texts."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import pyarrow as pa

from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.records.schemas import SIDES, TABLES
from dpo_diag.records.tables import TEXT, join_reference_tokens, to_frame
from dpo_diag.report.tokens import token_texts
from dpo_diag.report.vocabulary import TOKENIZER_FILE, VOCAB_FILE


def tokens_with_text(run: Run, steps: Iterable[int] | None, splits: Iterable[str] | None) -> pd.DataFrame:
    """See `frames.Run.tokens_text`."""
    wanted = None if splits is None else list(splits)
    policy = run.arrow("tokens", None, steps, wanted, ["policy"])
    # A reference row stands once, at whatever step it was written.
    reference = run.arrow("tokens", None, None, wanted, ["ref"])
    raw = to_frame(pa.concat_tables([policy, reference]).unify_dictionaries(), keep_categories=True, nullable=True)
    rows = join_reference_tokens(raw.drop_duplicates(list(TABLES["tokens"].key), keep="last"))
    if rows.empty:
        raise DiagError(
            "no token rows" if run.has("tokens") else "the run holds no token rows",
            where=run.name,
            hint="score its checkpoints with dpo-score tokens=true" if not run.has("tokens") else "ask for other steps",
        )
    texts = token_texts(run, rows, _answers(run))
    if texts.isna().all():
        raise DiagError(
            "nothing in the records says how the tokens are written",
            where=run.name,
            expected=f"{VOCAB_FILE}, {TOKENIZER_FILE} beside a checkpoint, or the tokenizer's folder on this disk",
            hint=f'write {VOCAB_FILE} ({{"token id": "text"}}) into the run; .tokens has the ids without it',
        )
    return rows.assign(text=texts.astype(TEXT))


def _answers(run: Run) -> dict[tuple[str, str], str]:
    """(pair_id, side) -> the response, where it is recorded."""
    texts = run.texts.set_index("pair_id")
    return {(str(pair), side): str(text) for side in SIDES for pair, text in texts[side].dropna().items()}
