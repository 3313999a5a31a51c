"""What tokenising leaves of each pair under TRL 1.16's rules: what is cut, dropped or moved, row by row.

TRL drops a pair whose prompt fills max_length without a word, cuts responses in the collator, and starts the response
where the tokens of the prompt alone and of prompt + response part. Here the same is counted, before training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpo_diag.data.formats import shorten
from dpo_diag.data.pairs import ISSUE_COLUMNS, Row
from dpo_diag.data.probes import rank
from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.errors import DiagError
from dpo_diag.models.tokenizers import require_chat_template

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

MAX_TRUNCATED_SHARE = 0.5
_BATCH = 512
_COUNTS = ("prompt_tokens", "prompt_lost", "prompt_cut", "chosen_tokens", "rejected_tokens", "chosen_cut",
           "rejected_cut", "chosen_bytes", "rejected_bytes")  # fmt: skip
TABLE_COLUMNS = ["row", "pair_id", "outcome", *_COUNTS]

PROMPT_FILLS = "the prompt fills max_length"
REFUSED = "the chat template refuses the messages"
NO_TOKENS = "a response has no tokens"
CUT_EQUAL = "the responses are equal once cut"
CUT = "a response is cut"
PROMPT_CUT = "the prompt is cut"
MOVED = "the prompt's last tokens merge with the response"


@dataclass
class TokenReport:
    """What tokenising does to a set of pairs.

    Attributes:
        table: one row per pair: row, pair_id, outcome (whole | truncated | dropped), prompt_tokens, prompt_lost (its
            last tokens that merge with the response and are left out), prompt_cut, chosen_tokens and rejected_tokens
            (before the cut, end token included), chosen_cut, rejected_cut, chosen_bytes and rejected_bytes (UTF-8 bytes
            of the tokens that are left). Counts of a row that the chat template refuses are 0.
        issues: row, why, detail, dropped, as in `PairSet.issues`; `dropped` rows never reach the loss.
        max_length, truncation_mode: the rule.
        notes: lines for the user about the whole set.
    """

    table: pd.DataFrame
    issues: pd.DataFrame
    max_length: int | None
    truncation_mode: str
    notes: list[str]

    @property
    def n_dropped(self) -> int:
        return int((self.table["outcome"] == "dropped").sum())

    @property
    def n_truncated(self) -> int:
        return int((self.table["outcome"] == "truncated").sum())

    @property
    def affected_share(self) -> float:
        """(Truncated + dropped) / pairs; 0 for no pairs."""
        return (self.n_dropped + self.n_truncated) / len(self.table) if len(self.table) else 0.0

    def kept(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that reach the loss; TRL would drop the others silently, or stop at them."""
        gone = set(self.table.loc[self.table["outcome"] == "dropped", "pair_id"])
        return [row for row in rows if row["pair_id"] not in gone]

    def summary(self) -> dict[str, Any]:
        """For run.json: the rule, counts, reasons, and the distribution of lengths (5 numbers each)."""
        table = self.table

        def spread(column: str) -> list[float]:
            if not len(table):
                return []
            return [float(v) for v in np.quantile(table[column].to_numpy(dtype=float), [0, 0.25, 0.5, 0.75, 1])]

        responses = int(table["chosen_tokens"].sum() + table["rejected_tokens"].sum())
        cut = int(table["chosen_cut"].sum() + table["rejected_cut"].sum())
        return {
            "max_length": self.max_length,
            "truncation_mode": self.truncation_mode,
            "n_pairs": len(table),
            "n_dropped": self.n_dropped,
            "n_truncated": self.n_truncated,
            "affected_share": self.affected_share,
            "response_tokens": responses,
            "response_tokens_cut": cut,
            "why": {str(k): int(v) for k, v in self.issues["why"].value_counts().items()},
            "quartiles": {name: spread(f"{name}_tokens") for name in ("prompt", "chosen", "rejected")},
        }

    def require(self, max_truncated_share: float = MAX_TRUNCATED_SHARE) -> TokenReport:
        """Itself, if some pairs are left and the share of truncated or dropped ones is at most `max_truncated_share`.

        Raises:
            DiagError: with the counts, and the max_length that would bring the share down to it.
        """
        n = len(self.table)
        if n and self.n_dropped < n and self.affected_share <= max_truncated_share:
            return self
        if not n:
            raise DiagError("no pairs to tokenise")
        why = ", ".join(f"{count} {reason}" for reason, count in self.issues["why"].value_counts().head(3).items())
        longest = self.table["prompt_tokens"] + self.table[["chosen_tokens", "rejected_tokens"]].max(axis=1)
        borne = min(int(n * max_truncated_share + 1e-9), n - 1)
        enough = int(np.sort(longest.to_numpy())[n - borne - 1])
        raise DiagError(
            "max_length cuts or drops too many pairs" if self.n_dropped < n else "no pair is left after tokenising",
            where=f"trainer.max_length={self.max_length}",
            got=f"{self.n_truncated} truncated and {self.n_dropped} dropped of {n} ({why})",
            expected=f"at most {max_truncated_share:.3g} of the pairs",
            hint=f"trainer.max_length={enough} would do, or raise data.max_truncated_share",
        )


def measure_tokens(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    byte_lengths: npt.NDArray[np.int32] | None = None,
) -> TokenReport:
    """Tokenise every pair as TRL 1.16's DPOTrainer would, and report.

    Args:
        rows: a PairSet's rows, all text or all messages.
        tokenizer: with a chat template where the rows are messages.
        max_length: tokens of prompt and response together; None for no limit.
        truncation_mode: "keep_start" cuts responses and drops pairs whose prompt fills max_length; "keep_end" cuts the
            prompt from its start first.
        byte_lengths: `token_bytes(tokenizer)`, where the caller has it already.

    Raises:
        DiagError: messages without a chat template, an unknown mode.
    """
    if truncation_mode not in ("keep_start", "keep_end"):
        raise DiagError("unknown truncation mode", got=truncation_mode, expected="keep_start or keep_end")
    notes = require_chat_template(tokenizer, "messages" if rows and not isinstance(rows[0]["prompt"], str) else "text")
    if byte_lengths is None:
        byte_lengths = token_bytes(tokenizer)
    records: list[dict[str, Any]] = []
    issues: list[tuple[int, str, str, bool]] = []
    for row, ids in tokenised(rows, tokenizer):
        if isinstance(ids, str):
            records.append(
                {"row": row["row"], "pair_id": row["pair_id"], "outcome": "dropped", **dict.fromkeys(_COUNTS, 0)}
            )
            issues.append((row["row"], REFUSED, ids, True))
            continue
        record, found = _measure_one(ids, max_length, truncation_mode, byte_lengths)
        records.append({"row": row["row"], "pair_id": row["pair_id"], **record})
        issues.extend((row["row"], *issue) for issue in found)
    table = pd.DataFrame(records, columns=TABLE_COLUMNS)
    if any(issue[1] == MOVED for issue in issues):
        notes.append(
            "some prompts end in tokens that merge with the response: the model trains on a context that it does not "
            "see when it answers; end prompts on a token boundary"
        )
    frame = pd.DataFrame(issues, columns=ISSUE_COLUMNS).astype({"dropped": bool})
    return TokenReport(table, frame, max_length, truncation_mode, notes)


def measure_until(
    rows: Sequence[Row],
    n: int | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    seed: int = 0,
) -> tuple[list[Row], TokenReport]:
    """At most `n` rows that reach the loss, in the source's order, and the report on the rows that were looked at.

    Rows are taken in `rank`'s order and replaced where they are dropped, so that a large source is not tokenised for a
    few rows. None takes all.
    """
    if n is None or n >= len(rows):
        report = measure_tokens(rows, tokenizer, max_length, truncation_mode)
        return report.kept(rows), report
    order, byte_lengths = rank(rows, seed), token_bytes(tokenizer)
    reports: list[TokenReport] = []
    taken, kept = 0, 0
    while not reports or (kept < n and taken < len(order)):
        batch = [rows[i] for i in order[taken : taken + n - kept]]
        reports.append(measure_tokens(batch, tokenizer, max_length, truncation_mode, byte_lengths))
        taken += len(batch)
        kept += len(batch) - reports[-1].n_dropped
    merged = TokenReport(
        pd.concat([r.table for r in reports], ignore_index=True),
        pd.concat([r.issues for r in reports], ignore_index=True),
        max_length,
        truncation_mode,
        list(dict.fromkeys(note for r in reports for note in r.notes)),
    )
    return merged.kept([rows[i] for i in sorted(order[:taken])]), merged


TokenIds = tuple[list[int], list[int], list[int]]
"""Token ids of the prompt alone, of prompt + chosen, of prompt + rejected."""


def _measure_one(
    ids: TokenIds, max_length: int | None, mode: str, byte_lengths: Any
) -> tuple[dict[str, Any], list[tuple[str, str, bool]]]:
    """Counts of one pair and its issues (why, detail, dropped)."""
    prompt, with_chosen, with_rejected = ids
    n_prompt = min(shared_prefix(prompt, with_chosen), shared_prefix(prompt, with_rejected))
    responses = {"chosen": with_chosen[n_prompt:], "rejected": with_rejected[n_prompt:]}
    issues: list[tuple[str, str, bool]] = []
    if n_prompt < len(prompt):
        issues.append((MOVED, f"{len(prompt) - n_prompt} tokens", False))
    limit = max_length if max_length is not None else n_prompt + max(map(len, responses.values()))
    record: dict[str, Any] = {"prompt_tokens": n_prompt, "prompt_lost": len(prompt) - n_prompt}
    prompt_cut, left = 0, {}
    for side, tokens in responses.items():
        if mode == "keep_start":
            left[side] = tokens[: max(limit - n_prompt, 0)]
        else:
            left[side] = tokens[max(len(tokens) - limit, 0) :]
            prompt_cut = max(prompt_cut, min(n_prompt, max(0, n_prompt + len(tokens) - limit)))
        record |= {
            f"{side}_tokens": len(tokens),
            f"{side}_cut": len(tokens) - len(left[side]),
            f"{side}_bytes": int(byte_lengths[left[side]].sum()),
        }
    record["prompt_cut"] = prompt_cut
    cut = record["chosen_cut"] + record["rejected_cut"]
    dropped = True
    if not responses["chosen"] or not responses["rejected"]:
        issues.append((NO_TOKENS, "the prompt's tokens hold it all", True))
    elif mode == "keep_start" and n_prompt >= limit:
        issues.append((PROMPT_FILLS, f"{n_prompt} tokens", True))
    else:
        dropped = False
        if cut and left["chosen"] == left["rejected"]:
            issues.append((CUT_EQUAL, f"the first {len(left['chosen'])} tokens: their margin can never change", False))
        elif cut:
            detail = ", ".join(f"{s} {record[f'{s}_cut']} of {record[f'{s}_tokens']} tokens" for s in responses)
            issues.append((CUT, detail, False))
        if prompt_cut:
            issues.append((PROMPT_CUT, f"{prompt_cut} of {n_prompt} tokens", False))
    record["outcome"] = "dropped" if dropped else "truncated" if cut or prompt_cut else "whole"
    return record, issues


def shared_prefix(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    if b[: len(a)] == a:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def tokenised(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Row, TokenIds | str]]:
    """Each row with its token ids, or with why its chat template refused; in batches, which fast tokenizers need."""
    from tqdm import tqdm

    with tqdm(total=len(rows), desc="tokenising", unit="pair", disable=len(rows) < 2000, leave=False) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            texts = [_texts(row, tokenizer) for row in batch]
            flat = [text for entry in texts if not isinstance(entry, str) for text in entry]
            special = bool(batch) and isinstance(batch[0]["prompt"], str)
            ids = iter(tokenizer(flat, add_special_tokens=special)["input_ids"] if flat else [])
            for row, entry in zip(batch, texts, strict=True):
                yield row, entry if isinstance(entry, str) else (next(ids), next(ids), next(ids))
            bar.update(len(batch))


def _texts(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str] | str:
    """Prompt, prompt + chosen, prompt + rejected as text, or why the chat template refused."""
    if isinstance(row["prompt"], str):
        end = str(tokenizer.eos_token)
        chosen, rejected = (r if r.endswith(end) else r + end for r in (row["chosen"], row["rejected"]))
        return row["prompt"], row["prompt"] + chosen, row["prompt"] + rejected
    from jinja2 import TemplateError

    tools = row.get("tools")
    options: dict[str, Any] = {"tools": json.loads(tools) if isinstance(tools, str) else tools, "tokenize": False}
    options |= row.get("chat_template_kwargs") or {}
    try:
        return (
            str(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)),
            str(tokenizer.apply_chat_template(row["prompt"] + row["chosen"], **options)),
            str(tokenizer.apply_chat_template(row["prompt"] + row["rejected"], **options)),
        )
    except (TemplateError, TypeError, ValueError) as error:
        return shorten(f"{type(error).__name__}: {error}", 160)
