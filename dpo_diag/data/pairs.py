"""A data set of preference pairs: what was read, what was not and why, a fingerprint, and a split without leakage.

Every row that is left out is listed with its reason; nothing is dropped silently. What a later stage must know (the
counts, the reasons, the fingerprint) is `PairSet.summary()`; the list itself is `PairSet.issues`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records.conversation import prompt_text, response_text
from dpo_diag.records.row_files import SUFFIXES, BadRow, read_rows, suffix_of
from dpo_diag.records.row_files import Row as RawRow
from dpo_diag.records.schemas import SIDES
from dpo_diag.rows.forms import FORMATS, detect_format
from dpo_diag.rows.pair import Pair, prompt_key, shorten
from dpo_diag.text import some

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
"""row (its number in the source), pair_id, prompt, chosen, rejected (all text or all messages), chosen_bytes,
rejected_bytes (UTF-8 bytes of the responses' text), and `tools` or `chat_template_kwargs` where the source has them."""

MAX_BAD_SHARE = 0.05
ISSUE_COLUMNS = ["row", "why", "detail", "dropped"]
TRAINED_COLUMNS = ("prompt", "chosen", "rejected", "pair_id", "tools", "chat_template_kwargs")


@dataclass
class PairSet:
    """Preference pairs from one source.

    Attributes:
        rows: the usable pairs, in the source's order (see `Row`).
        issues: one line per finding: row (number in the source), why, detail, dropped (False: kept, but look at it).
        n_read: rows of the source, blank lines not counted.
        source: where they come from: path or name, format, split.
        kind: "text" or "messages"; every row is of this kind.
        fingerprint: SHA-256 of the usable pairs' content in order; the same pairs give the same one from any format.
    """

    rows: list[Row]
    issues: pd.DataFrame
    n_read: int
    source: dict[str, Any]
    kind: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_dropped(self) -> int:
        """Rows of the source that are no usable pair."""
        return int(self.issues["dropped"].sum())

    @property
    def bad_share(self) -> float:
        """Dropped rows / rows read; 0 for an empty source."""
        return self.n_dropped / self.n_read if self.n_read else 0.0

    def summary(self) -> dict[str, Any]:
        """For run.json's `data`: source, counts, reasons, fingerprint. No text of the pairs."""
        dropped = self.issues[self.issues["dropped"]]
        kept = self.issues[~self.issues["dropped"]]
        return {
            "source": self.source,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "n_read": self.n_read,
            "n_pairs": len(self.rows),
            "n_prompts": len({prompt_key(row["prompt"]) for row in self.rows}),
            "n_dropped": self.n_dropped,
            "bad_share": self.bad_share,
            "dropped": {str(k): int(v) for k, v in dropped["why"].value_counts().items()},
            "noted": {str(k): int(v) for k, v in kept["why"].value_counts().items()},
        }

    def require(self, max_bad_share: float = MAX_BAD_SHARE) -> PairSet:
        """Itself, if there are pairs and the share of dropped rows is at most `max_bad_share`.

        Raises:
            DiagError: no usable pair, or too many bad rows; it names the commonest reasons and the first rows.
        """
        if self.rows and self.bad_share <= max_bad_share:
            return self
        where = self.source.get("path") or self.source.get("name")
        dropped = self.issues[self.issues["dropped"]]
        if not len(dropped):
            raise DiagError("no preference pairs", where=where, got=f"{self.n_read} rows")
        reasons = []
        for why, count in dropped["why"].value_counts().head(3).items():
            first = dropped.loc[dropped["why"] == why].iloc[0]
            detail = f": {first['detail']}" if first["detail"] else ""
            reasons.append(f"{count} {why} (first in row {first['row']}{detail})")
        raise DiagError(
            "too many bad rows" if self.rows else "no usable preference pair",
            where=where,
            got=f"{self.n_dropped} of {self.n_read} rows: {', '.join(reasons)}",
            expected=f"at most {max_bad_share:.3g} of the rows" if self.rows else "prompt, chosen, rejected",
            hint="correct those rows, choose the right data format, or raise data.max_bad_share",
        )


def to_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows as a `datasets.Dataset`: prompt, chosen, rejected, pair_id, and what the chat template takes.

    Messages and template options are JSON there: as columns of Arrow every message would get the keys of all others,
    filled with null, which templates write out.

    Raises:
        DiagError: no rows, since a trainer cannot find out their columns.
    """
    from datasets import Dataset, Features, Json, List, Value

    if not rows:
        raise DiagError("no preference pairs to train or evaluate on", hint="check data and the held-out share")
    names = [name for name in TRAINED_COLUMNS if any(name in row for row in rows)]
    text = Value("string")
    turns = text if isinstance(rows[0]["prompt"], str) else List(Json())
    kinds = dict.fromkeys(("prompt", *SIDES), turns) | {"chat_template_kwargs": Json()}
    # TRL unpacks a row's template options: none is an empty mapping.
    blank: Row = {"chat_template_kwargs": {}}
    table = [{name: row.get(name, blank.get(name)) for name in names} for row in rows]
    return Dataset.from_list(table, features=Features({name: kinds.get(name, text) for name in names}))


def text_rows(rows: Iterable[Row], split: str) -> list[dict[str, str]]:
    """Rows of the `texts` table: messages rendered as `role: content` paragraphs."""
    return [
        {
            "split": split,
            "pair_id": row["pair_id"],
            "prompt": prompt_text(row["prompt"]),
            "chosen": response_text(row["chosen"]),
            "rejected": response_text(row["rejected"]),
        }
        for row in rows
    ]


def collect(
    raw_rows: Iterable[RawRow], source: Mapping[str, Any], data_format: str = "auto", limit: int | None = None
) -> PairSet:
    """Read raw rows into a `PairSet`. One pass; what stays in memory is the pairs and 16 characters of id for each.

    Args:
        raw_rows: (row number, row or why it cannot be read).
        source: what to say about the origin.
        data_format: "trl", "sharegpt", or "auto" (decided by the first readable row).
        limit: stop after so many rows of the source.
    """
    from tqdm import tqdm

    rows: list[Row] = []
    issues: list[tuple[int, str, str, bool]] = []
    seen: dict[str, int] = {}
    digest = hashlib.sha256()
    n_read, kind = 0, ""
    for number, raw in tqdm(raw_rows, desc="reading pairs", unit="row", delay=2, leave=False):
        if limit is not None and n_read >= limit:
            break
        n_read += 1
        try:
            if isinstance(raw, BadRow):
                raise raw
            if data_format == "auto":
                data_format = detect_format(raw)
            pair = FORMATS[data_format].read(raw)
            if kind and pair.kind != kind:
                # A trainer decides once for the whole set whether to add an end token or a chat template.
                raise BadRow(f"{pair.kind} in a set of {kind}", shorten(prompt_text(pair.prompt)))
            row = _finished(number, pair)
            if (first := seen.get(row["pair_id"])) is not None:
                raise BadRow("duplicated pair", f"the same as row {first}")
        except BadRow as bad:
            issues.append((number, bad.why, bad.detail, True))
            continue
        kind = pair.kind
        if (first := seen.get(pair.swapped().pair_id)) is not None:
            pair.notes.append(("contradicts another row", f"row {first} prefers the other response"))
        seen[row["pair_id"]] = number
        digest.update(_content(row))
        rows.append(row)
        issues.extend((number, why, detail, False) for why, detail in pair.notes)
    return PairSet(
        rows=rows,
        issues=pd.DataFrame(issues, columns=ISSUE_COLUMNS).astype({"dropped": bool}),
        n_read=n_read,
        source={**source, "format": data_format},
        kind=kind or "text",
        fingerprint=digest.hexdigest(),
    )


def _finished(number: int, pair: Pair) -> Row:
    return {
        "row": number,
        "pair_id": pair.pair_id,
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "chosen_bytes": len(response_text(pair.chosen).encode()),
        "rejected_bytes": len(response_text(pair.rejected).encode()),
        **pair.extra,
    }


def _content(row: Row) -> bytes:
    kept = [row.get(name) for name in TRAINED_COLUMNS if name != "pair_id"]
    return json.dumps(kept, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n"


def read_pairs(path: str | Path, data_format: str = "auto", *, limit: int | None = None) -> PairSet:
    """Preference pairs of a json, jsonl, parquet, csv or tsv file, compressed or not. Call `.require()` on the result.

    Raises:
        DiagError: the file is absent, empty, of an unknown format, or cannot be read as a whole.
    """
    if data_format != "auto" and data_format not in FORMATS:
        raise DiagError("unknown data format", got=data_format, expected=f"auto, {', '.join(FORMATS)}")
    file = Path(path).expanduser()
    _check_file(file)
    return collect(read_rows(file), {"path": str(path)}, data_format, limit)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DiagError("no such data file", where=path, hint="check data.path (it is relative to where you started)")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if suffix_of(p) in SUFFIXES)
        hint = f"name one of the files inside: {some(inside)}" if inside else "use data=hub for a dataset folder"
        raise DiagError("the data path is a folder", where=path, expected="a file", hint=hint)
    if suffix_of(path) not in SUFFIXES:
        expected = f"{', '.join(SUFFIXES)} (compressed or not)"
        raise DiagError("unknown data format", where=path, got=suffix_of(path) or "no suffix", expected=expected)
    if path.stat().st_size == 0:
        raise DiagError("the data file is empty", where=path, expected="preference pairs")
