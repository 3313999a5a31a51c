"""What tokenising leaves of each pair: what is cut, dropped or moved, row by row, counted before training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpo_diag.data.length_cap import capped, stops_midway
from dpo_diag.data.pairs import ISSUE_COLUMNS, Row
from dpo_diag.data.splits import rank
from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.data.tokens import EncodedPair, encode_pairs, kind_of
from dpo_diag.data.trained_tokens import CAP, CUT, CUT_EQUAL, EQUAL, UNSEEN, Finding, TokenRules, findings_of, of_sides
from dpo_diag.errors import DiagError
from dpo_diag.models.tokenizers import require_chat_template
from dpo_diag.records.conversation import response_text
from dpo_diag.records.schemas import SIDES
from dpo_diag.thresholds import Thresholds, defaults

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TRUNCATED_SHARE = 0.5
TABLE_COLUMNS = ["row", "pair_id", "outcome", "prompt_tokens", "prompt_lost", "prompt_cut", "chosen_tokens",
                 "rejected_tokens", "chosen_cut", "rejected_cut", "chosen_bytes", "rejected_bytes"]  # fmt: skip

PROMPT_CUT = "the prompt is cut"
MOVED = "the prompt's last tokens merge with the response"


class Look:
    """What is looked for in the tokens of a set.

    Args:
        end_ids: ids that end a generation beside the tokenizer's end token (the model's generation config).
        sides: the answers that are trained; SFT on pairs trains chosen alone.
        thresholds: `length_cap.*`.
        loss_on: what the loss counts, as `config_sft.LOSS_ON` names it: beyond the answer ("last") the assistant's
            earlier turns ("assistant") or the whole prompt ("all").
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Collection[int] = (),
        sides: Sequence[str] = SIDES,
        thresholds: Thresholds | None = None,
        loss_on: str = "last",
    ) -> None:
        self.rules, self.sides = TokenRules(tokenizer, end_ids), tuple(sides)
        self.thresholds = thresholds or defaults()
        self.byte_lengths = token_bytes(tokenizer)
        self._loss_on = loss_on

    def trains_prompt(self, row: Row) -> bool:
        """Whether the loss counts tokens of a row's prompt."""
        turns = [] if isinstance(row["prompt"], str) else row["prompt"]
        earlier = self._loss_on == "assistant" and any(turn["role"] == "assistant" for turn in turns)
        return self._loss_on == "all" or earlier


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
        what: what a row is called: a pair, or of a supervised training a row.
    """

    table: pd.DataFrame
    issues: pd.DataFrame
    max_length: int | None
    truncation_mode: str
    notes: list[str]
    what: str = "pair"

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

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with the tokens that would be trained, commonest first."""
        return findings_of(self.issues, len(self.table))

    def summary(self) -> dict[str, Any]:
        """For run.json: the rule, counts, reasons, findings, and the distribution of lengths (5 numbers each)."""
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
            "findings": [finding.to_dict() for finding in self.findings],
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
            raise DiagError(f"no {self.what}s to tokenise")
        why = ", ".join(f"{count} {reason}" for reason, count in self.issues["why"].value_counts().head(3).items())
        longest = self.table["prompt_tokens"] + self.table[["chosen_tokens", "rejected_tokens"]].max(axis=1)
        borne = min(int(n * max_truncated_share + 1e-9), n - 1)
        enough = int(np.sort(longest.to_numpy())[n - borne - 1])
        raise DiagError(
            f"max_length cuts or drops too many {self.what}s" if self.n_dropped < n
            else f"no {self.what} is left after tokenising",
            where=f"trainer.max_length={self.max_length}",
            got=f"{self.n_truncated} truncated and {self.n_dropped} dropped of {n} ({why})",
            expected=f"at most {max_truncated_share:.3g} of the {self.what}s",
            hint=f"trainer.max_length={enough} would do, or raise data.max_truncated_share",
        )  # fmt: skip


def measure_tokens(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    look: Look | None = None,
) -> TokenReport:
    """Tokenise every pair as TRL 1.16's DPOTrainer would, and report.

    Args:
        rows: a PairSet's rows, all text or all messages.
        tokenizer: with a chat template where the rows are messages.
        max_length: tokens of prompt and response together; None for no limit.
        truncation_mode: "keep_start" cuts responses and drops pairs whose prompt fills max_length; "keep_end" cuts the
            prompt from its start first.
        look: what is looked for, both sides by default.

    Raises:
        DiagError: messages without a chat template, an unknown mode.
    """
    look = look or Look(tokenizer)
    return _with_caps(_measure(rows, tokenizer, max_length, truncation_mode, look), rows, look)


def _measure(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None, truncation_mode: str, look: Look
) -> TokenReport:
    notes = require_chat_template(tokenizer, kind_of(rows))
    records: list[dict[str, Any]] = []
    issues: list[tuple[int, str, str, bool]] = []
    for pair in encode_pairs(rows, tokenizer, max_length, truncation_mode, look.sides, look.trains_prompt):
        records.append(_count(pair, look))
        issues.extend((pair.row, *issue) for issue in _issues(pair, records[-1], look))
    table = pd.DataFrame(records, columns=TABLE_COLUMNS)
    if any(issue[1] == MOVED for issue in issues):
        notes.append(
            "some prompts end in tokens that merge with the response: the model trains on a context that it does not "
            "see when it answers; end prompts on a token boundary"
        )
    what = "pair" if len(look.sides) > 1 else "row"
    return TokenReport(table, _issue_frame(issues), max_length, truncation_mode, notes, what)


def _issue_frame(issues: list[tuple[int, str, str, bool]]) -> pd.DataFrame:
    return pd.DataFrame(issues, columns=ISSUE_COLUMNS).astype({"dropped": bool})


def measure_until(
    rows: Sequence[Row],
    n: int | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    seed: int = 0,
    look: Look | None = None,
) -> tuple[list[Row], TokenReport]:
    """At most `n` rows that reach the loss, in the source's order, and the report on the rows that were looked at.

    Rows are taken in `rank`'s order and replaced where they are dropped, so that a large source is not tokenised for a
    few rows. None takes all.
    """
    look = look or Look(tokenizer)
    if n is None or n >= len(rows):
        report = measure_tokens(rows, tokenizer, max_length, truncation_mode, look)
        return report.kept(rows), report
    order = rank(rows, seed)
    reports: list[TokenReport] = []
    taken, kept = 0, 0
    while not reports or (kept < n and taken < len(order)):
        batch = [rows[i] for i in order[taken : taken + n - kept]]
        reports.append(_measure(batch, tokenizer, max_length, truncation_mode, look))
        taken += len(batch)
        kept += len(batch) - reports[-1].n_dropped
    merged = TokenReport(
        pd.concat([r.table for r in reports], ignore_index=True),
        pd.concat([r.issues for r in reports], ignore_index=True),
        max_length,
        truncation_mode,
        list(dict.fromkeys(note for r in reports for note in r.notes)),
        reports[0].what,
    )
    looked_at = [rows[i] for i in sorted(order[:taken])]
    return merged.kept(looked_at), _with_caps(merged, looked_at, look)


def _with_caps(report: TokenReport, rows: Sequence[Row], look: Look) -> TokenReport:
    """The report with the answers that end at a length cap among its issues."""
    texts = {row.get("row", i): row for i, row in enumerate(rows)}
    table = report.table[report.table["outcome"] != "dropped"]
    issues = []
    for side in look.sides:
        answers = [look.rules.without_end(response_text(texts[row][side])) for row in table["row"]]
        midway = [stops_midway(answer) for answer in answers]
        for lengths, unit in ((table[f"{side}_tokens"], "tokens"), ([len(a) for a in answers], "characters")):
            at, why = capped(lengths, midway, unit, look.thresholds)
            if at.any():
                issues += [(row, CAP, f"{side}: {why}", False) for row in table["row"][at]]
                break
    return replace(report, issues=_issue_frame([*report.issues.itertuples(index=False, name=None), *issues]))


def _count(pair: EncodedPair, look: Look) -> dict[str, Any]:
    """A row of the report's table; an answer that is not looked at has zeros."""
    cut = sum(pair.n_truncated.values())
    prompt_cut = 0 if pair.dropped else max(pair.n_prompt - len(pair.prompt[side]) for side in look.sides)
    record: dict[str, Any] = {
        "row": pair.row, "pair_id": pair.pair_id, "prompt_tokens": pair.n_prompt, "prompt_lost": pair.n_merged,
        "prompt_cut": prompt_cut,
        "outcome": "dropped" if pair.dropped else "truncated" if cut or prompt_cut else "whole",
    }  # fmt: skip
    for side in SIDES:
        left = pair.response[side]
        record[f"{side}_tokens"] = len(left) + pair.n_truncated[side]
        record[f"{side}_cut"] = pair.n_truncated[side]
        record[f"{side}_bytes"] = int(look.byte_lengths[left].sum())
    return record


def _issues(pair: EncodedPair, counts: dict[str, Any], look: Look) -> list[tuple[str, str, bool]]:
    """(why, detail, dropped) of everything that happened to one pair."""
    issues: list[tuple[str, str, bool]] = []
    if pair.n_merged:
        issues.append((MOVED, f"{pair.n_merged} tokens", False))
    if pair.dropped:
        return [*issues, (*pair.dropped, True)]
    left = pair.response["chosen"]
    paired = len(look.sides) > 1
    if any(pair.n_truncated.values()):
        if paired and left == pair.response["rejected"]:
            issues.append((CUT_EQUAL, f"the first {len(left)} tokens", False))
        else:
            shown = ((side if paired else "answer", side) for side in look.sides)
            detail = ", ".join(f"{name} {counts[f'{s}_cut']} of {counts[f'{s}_tokens']} tokens" for name, s in shown)
            issues.append((CUT, detail, False))
    elif paired and left == pair.response["rejected"]:
        issues.append((EQUAL, f"{len(left)} tokens", False))
    if counts["prompt_cut"]:
        issues.append((PROMPT_CUT, f"{counts['prompt_cut']} of {pair.n_prompt} tokens", False))
    if pair.unseen:
        issues.append((UNSEEN, ", ".join(pair.unseen), False))
    found: dict[str, dict[str, str]] = {}
    for side in look.sides if left else ():  # of a prompt that fills max_length the loss sees the cut alone
        for why, detail in look.rules.issues(pair.trained(side), own_think=side in pair.own_think):
            found.setdefault(why, {})[side if paired else "answer"] = detail
    return issues + [(why, of_sides(details), False) for why, details in found.items()]
