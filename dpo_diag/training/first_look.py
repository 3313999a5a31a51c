"""Before the first step: what is wrong with the tokens that a trainer is about to learn from, and one example of them.

It looks at the data set as TRL tokenised it, so it holds for every data set that reaches a trainer; pairs with images,
which TRL tokenises batch by batch, cannot be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, IterableDataset

from dpo_diag.data.length_cap import capped, stops_midway
from dpo_diag.data.pairs import ISSUE_COLUMNS
from dpo_diag.data.source import REPORT_FILE
from dpo_diag.data.trained_tokens import (
    CAP,
    EQUAL,
    UNSEEN,
    Finding,
    TokenRules,
    TrainedIds,
    findings_of,
    has_empty_think,
    of_sides,
    unseen_parts,
)
from dpo_diag.models.decoding import Decoding, stop_ids
from dpo_diag.records.checksums import read_json
from dpo_diag.records.conversation import content_text, is_conversation
from dpo_diag.records.files import write_json
from dpo_diag.records.schemas import SIDES
from dpo_diag.text import safe
from dpo_diag.thresholds import defaults
from dpo_diag.training.pair_ids import KEY
from dpo_diag.training.sequences import ROW

ROWS, STREAMED = 1000, 32
"""Rows that are looked at: enough to see what most rows have, and little beside what tokenising cost; of a stream few,
since each is made for this alone."""
_SHOWN_BEFORE, _SHOWN = 300, 600
"""Characters that the console shows of what is not trained before an answer, and of an answer."""


@dataclass(frozen=True)
class FirstLook:
    """What was seen.

    Attributes:
        rows: rows that were looked at.
        findings: what is wrong with them.
        sample: side -> the first row as the model sees it, in pieces of {"text", "trained"}; SFT has one side,
            "sequence".
        row: that row's number in the data set.
    """

    rows: int
    findings: list[Finding]
    sample: Mapping[str, list[dict[str, Any]]]
    row: int

    def lines(self, underline: bool = False) -> list[str]:
        """The sample for a console: trained tokens between ⟦ and ⟧, special tokens visible, one line a side."""
        head = "the first training example as the model sees it; the loss counts what stands in ⟦ ⟧:"
        width = max(map(len, self.sample))
        return [head, *(f"  {side:<{width}}  {_line(pieces, underline)}" for side, pieces in self.sample.items())]

    def add_to_report(self, folder: Path) -> None:
        """Put it into the run's data_report.json, beside what stands there."""
        path = folder / REPORT_FILE
        known = read_json(path) if path.exists() else {}
        seen = {"rows": self.rows, "findings": [{**f.to_dict(), "detail": f.detail} for f in self.findings]}
        write_json(path, {**known, "first_look": seen, "sample": {"row": self.row, **self.sample}})


def first_look(trainer: Any) -> FirstLook | None:
    """A look at a trainer's training set; None where it holds no tokens."""
    dataset = trainer.train_dataset
    if isinstance(dataset, Dataset):
        rows: Iterable[Mapping[str, Any]] = dataset.select(range(min(ROWS, len(dataset))))
    elif isinstance(dataset, IterableDataset):
        rows = islice(dataset, STREAMED)
    else:
        return None  # reading may be what can be done once
    rules = TokenRules(trainer._tokenizer, stop_ids(trainer.model, trainer._tokenizer, Decoding()))
    issues: list[tuple[int, str, str, bool]] = []
    sample: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, list[tuple[int, int, str]]] = {}
    n, first = 0, 0
    for i, row in enumerate(rows):
        sides = dict(_sides(row, trainer.args))
        if not sides:
            return None
        number, n = _row_number(row, i), n + 1
        if not sample:
            first, sample = number, {side: _pieces(seen, rules) for side, seen in sides.items()}
        issues += [(number, why, detail, False) for why, detail in _issues(row, sides, rules)]
        for side, seen in sides.items():
            for begin, end in list(seen.spans())[-1:]:
                text = rules.without_end(rules.text(seen.ids[begin:end]))
                answers.setdefault(side, []).append((number, end - begin, text))
    for side, found in answers.items():
        at, why = capped(
            [size for _, size, _ in found], [stops_midway(text) for *_, text in found], "tokens", defaults()
        )
        issues += [(number, CAP, f"{side}: {why}", False) for (number, *_), hit in zip(found, at, strict=True) if hit]
    return FirstLook(n, findings_of(pd.DataFrame(issues, columns=ISSUE_COLUMNS), n), sample, first) if n else None


def _row_number(row: Mapping[str, Any], i: int) -> int:
    own = row[KEY][1] if KEY in row else row.get(ROW, i)
    return int(own) if own >= 0 else i


def _sides(row: Mapping[str, Any], args: Any) -> Iterator[tuple[str, TrainedIds]]:
    """The sequences of one row of a tokenised data set, as the collator will cut them."""
    limit = args.max_length
    keep_end = getattr(args, "truncation_mode", "keep_start") == "keep_end"
    if "chosen_ids" in row:
        for side in SIDES:
            prompt, response = ([int(i) for i in row[name]] for name in ("prompt_ids", f"{side}_ids"))
            yield side, _cut(TrainedIds.of_pair(prompt, response), limit, keep_end)
    elif "input_ids" in row:
        ids = [int(i) for i in row["input_ids"]]
        trained = [int(label) != -100 for label in row["labels"]] if "labels" in row else [True] * len(ids)
        is_cut = bool(getattr(args, "packing", False)) or (limit is not None and len(ids) >= limit)
        yield "sequence", _cut(TrainedIds(ids, trained, is_cut), limit, keep_end)


def _cut(seen: TrainedIds, limit: int | None, keep_end: bool) -> TrainedIds:
    if limit is None or len(seen.ids) <= limit:
        return seen
    where = slice(-limit, None) if keep_end else slice(None, limit)
    return TrainedIds(seen.ids[where], seen.trained[where], is_cut=True)


def _issues(row: Mapping[str, Any], sides: Mapping[str, TrainedIds], rules: TokenRules) -> Iterator[tuple[str, str]]:
    found: dict[str, dict[str, str]] = {}
    unseen: list[str] = []
    for side, seen in sides.items():
        answers = _answers(row, side)
        for why, detail in rules.issues(seen, own_think=any(map(has_empty_think, answers))):
            found.setdefault(why, {})[side] = detail
        if answers and is_conversation(answers[-1]) and not seen.is_cut:
            rendered = rules.text(seen.ids)
            # A tokenizer that changes texts (their case, their spaces) shows nothing of them.
            if all(content_text(message.get("content")).strip() in rendered for message in answers[-1]):
                unseen += unseen_parts(answers[-1], rendered)
    yield from ((why, of_sides(details)) for why, details in found.items())
    if unseen:
        yield UNSEEN, ", ".join(dict.fromkeys(unseen))
    if len(sides) == len(SIDES) and len({tuple(seen.ids) for seen in sides.values()}) == 1:
        yield EQUAL, "chosen and rejected are the same tokens"


def _answers(row: Mapping[str, Any], side: str) -> list[Any]:
    """The answers that a row's columns hold as text or messages, as far as they are there."""
    if side in SIDES:
        found = [row.get(side)]
    elif row.get("completion") is not None:
        found = [row["completion"]]
    else:
        found = [[turn] for turn in row.get("messages") or [] if turn.get("role") == "assistant"]
    return [answer for answer in found if isinstance(answer, str) or is_conversation(answer)]


def _pieces(seen: TrainedIds, rules: TokenRules) -> list[dict[str, Any]]:
    """The whole sequence as text, in pieces that are trained or not."""
    pieces, at = [], 0
    for begin, end in seen.spans():
        pieces += [{"text": rules.text(seen.ids[at:begin]), "trained": False}] if begin > at else []
        pieces.append({"text": rules.text(seen.ids[begin:end]), "trained": True})
        at = end
    if at < len(seen.ids):
        pieces.append({"text": rules.text(seen.ids[at:]), "trained": False})
    return pieces


def _line(pieces: list[dict[str, Any]], underline: bool) -> str:
    line = ""
    for piece in pieces:
        text, size = piece["text"], _SHOWN if piece["trained"] else _SHOWN_BEFORE
        if len(text) > size:
            # What matters stands at the border: the begin of all, the end of what comes before, both ends of an answer.
            text = f"{text[: size // 3]} … {len(text) - size} characters … {text[-2 * size // 3 :]}"
        shown = safe(text, max_chars=None, one_line=True)
        if piece["trained"]:
            shown = f"⟦\x1b[4m{shown}\x1b[24m⟧" if underline else f"⟦{shown}⟧"
        line += shown
    return line
