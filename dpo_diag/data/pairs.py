"""A data set of preference pairs: what was read, what was not and why, a fingerprint, and a split without leakage.

Every row that is left out is listed with its reason; nothing is dropped silently. What a later stage must know (the
counts, the reasons, the fingerprint) is `PairSet.summary()`; the list itself is `PairSet.issues`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.data.files import RawRow, iterate_rows
from dpo_diag.data.formats import FORMATS, BadRow, Message, Pair, detect_format, render, response_text, shorten
from dpo_diag.errors import DiagError
from dpo_diag.models.hub import hub_offline_if_unreachable, hub_reachable, looks_local
from dpo_diag.records.pair_id import make_pair_id
from dpo_diag.records.writer import write_json

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
    _dropped: int = field(default=0, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_dropped(self) -> int:
        return self._dropped

    @property
    def bad_share(self) -> float:
        """Dropped rows / rows read; 0 for an empty source."""
        return self._dropped / self.n_read if self.n_read else 0.0

    def summary(self) -> dict[str, Any]:
        """For run.json's `data`: source, counts, reasons, fingerprint. No text of the pairs."""
        dropped = self.issues[self.issues["dropped"].astype(bool)]
        kept = self.issues[~self.issues["dropped"].astype(bool)]
        return {
            "source": self.source,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "n_read": self.n_read,
            "n_pairs": len(self.rows),
            "n_prompts": len({prompt_key(row["prompt"]) for row in self.rows}),
            "n_dropped": self._dropped,
            "bad_share": self.bad_share,
            "dropped": {str(k): int(v) for k, v in dropped["why"].value_counts().items()},
            "noted": {str(k): int(v) for k, v in kept["why"].value_counts().items()},
        }

    def write_report(self, path: str | Path) -> Path:
        """Write the summary and every listed row as one JSON document."""
        path = Path(path)
        write_json(path, {**self.summary(), "rows": self.issues.to_dict("records")})
        return path

    def require(self, max_bad_share: float = MAX_BAD_SHARE) -> PairSet:
        """Itself, if there are pairs and the share of dropped rows is at most `max_bad_share`.

        Raises:
            DiagError: no usable pair, or too many bad rows; it names the commonest reasons and the first rows.
        """
        if self.rows and self.bad_share <= max_bad_share:
            return self
        where = self.source.get("path") or self.source.get("name")
        dropped = self.issues[self.issues["dropped"].astype(bool)]
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
            got=f"{self._dropped} of {self.n_read} rows: {', '.join(reasons)}",
            expected=f"at most {max_bad_share:.3g} of the rows" if self.rows else "prompt, chosen, rejected",
            hint="hint those rows, choose the right data format, or raise data.max_bad_share",
        )

    def to_dataset(self) -> Dataset:
        """The pairs as a `datasets.Dataset` with the columns that TRL reads, and pair_id."""
        return to_dataset(self.rows)


def to_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows as a `datasets.Dataset`: prompt, chosen, rejected, pair_id, and what the chat template takes.

    Raises:
        DiagError: no rows, since a trainer cannot find out their columns.
    """
    from datasets import Dataset

    if not rows:
        raise DiagError("no preference pairs to train or evaluate on", hint="check data and the held-out share")
    names = [name for name in TRAINED_COLUMNS if any(name in row for row in rows)]
    return Dataset.from_list([{name: row.get(name) for name in names} for row in rows])


def text_rows(rows: Iterable[Row], split: str) -> list[dict[str, str]]:
    """Rows of the `texts` table: messages rendered as `role: content` paragraphs."""
    return [
        {
            "split": split,
            "pair_id": row["pair_id"],
            "prompt": render(row["prompt"]),
            "chosen": response_text(row["chosen"]),
            "rejected": response_text(row["rejected"]),
        }
        for row in rows
    ]


def collect(
    raw_rows: Iterable[RawRow],
    source: Mapping[str, Any],
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> PairSet:
    """Read raw rows into a `PairSet`. One pass; what stays in memory is the pairs and 16 characters of id for each.

    Args:
        raw_rows: (row number, row or why it cannot be read).
        source: what to say about the origin.
        data_format: "trl", "sharegpt", or "auto" (decided by the first readable row).
        columns: our name -> the source's, e.g. {"prompt": "question"}.
        limit: stop after so many rows of the source.
    """
    from tqdm import tqdm

    rows: list[Row] = []
    issues: list[tuple[int, str, str, bool]] = []
    seen: dict[str, int] = {}
    digest = hashlib.sha256()
    n_read, dropped, kind = 0, 0, ""
    for number, raw in tqdm(raw_rows, desc="reading pairs", unit="row", delay=2, leave=False):
        if limit is not None and n_read >= limit:
            break
        n_read += 1
        try:
            if isinstance(raw, BadRow):
                raise raw
            if columns:
                raw = _renamed(raw, columns)
            if data_format == "auto":
                data_format = detect_format(raw)
            pair = FORMATS[data_format](raw)
            if kind and pair.kind != kind:
                # A trainer decides once for the whole set whether to add an end token or a chat template.
                raise BadRow(f"{pair.kind} in a set of {kind}", shorten(render(pair.prompt)))
            row = _finished(number, pair)
            if (first := seen.get(row["pair_id"])) is not None:
                raise BadRow("duplicated pair", f"the same as row {first}")
        except BadRow as bad:
            dropped += 1
            issues.append((number, bad.why, bad.detail, True))
            continue
        kind = pair.kind
        swapped = make_pair_id(*_identity(Pair(pair.prompt, pair.rejected, pair.chosen)))
        if (first := seen.get(swapped)) is not None:
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
        _dropped=dropped,
    )


def _renamed(raw: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    row = dict(raw)
    for ours, theirs in columns.items():
        if theirs not in raw:
            raise BadRow(f"missing field {theirs}", f"the row has {shorten(', '.join(map(str, raw)))}")
        row[ours] = raw[theirs]
    return row


def _identity(pair: Pair) -> tuple[Any, Any, Any]:
    """What the id is made of; a tool call counts as content, else two calls without text would be one pair."""

    def plain(value: str | list[Message]) -> Any:
        if isinstance(value, str) or not any(m.get("tool_calls") for m in value):
            return value
        return [{"role": m["role"], "content": response_text([m])} for m in value]

    return plain(pair.prompt), plain(pair.chosen), plain(pair.rejected)


def _finished(number: int, pair: Pair) -> Row:
    return {
        "row": number,
        "pair_id": make_pair_id(*_identity(pair)),
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


def read_pairs(
    path: str | Path,
    data_format: str = "auto",
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> PairSet:
    """Preference pairs of one json, jsonl, parquet, csv or tsv file (or .gz of it). Call `.require()` on the result.

    Raises:
        DiagError: the file is absent, empty, of an unknown format, or cannot be read as a whole.
    """
    if data_format not in ("auto", *FORMATS):
        raise DiagError("unknown data format", got=data_format, expected=f"auto, {', '.join(FORMATS)}")
    return collect(iterate_rows(path), {"path": str(path)}, data_format, columns, limit)


def read_jsonl(path: str | Path, **options: Any) -> PairSet:
    """TRL's formats: prompt, chosen, rejected as text or messages; without prompt, it is what both responses share."""
    return read_pairs(path, "trl", **options)


def read_sharegpt(path: str | Path, **options: Any) -> PairSet:
    """LLaMA-Factory's ShareGPT ranking format: conversations, chosen, rejected, and the optional system and tools."""
    return read_pairs(path, "sharegpt", **options)


def read_hub(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    revision: str | None = None,
    data_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> PairSet:
    """Preference pairs of a `datasets` id, or of a local folder (`save_to_disk`, or data files).

    Raises:
        DiagError: no such data set, split or config, or the hub cannot be reached.
    """
    dataset = _load_hub(name, split, config, revision)
    source = {"name": name, "split": split, "config": config, "revision": revision}
    rows: Iterable[RawRow] = ((number, row) for number, row in enumerate(dataset, start=1))
    return collect(rows, {k: v for k, v in source.items() if v is not None}, data_format, columns, limit)


def _load_hub(name: str, split: str, config: str | None, revision: str | None) -> Any:
    import datasets

    folder = Path(name).expanduser()
    try:
        if not looks_local(name):
            before = datasets.config.HF_HUB_OFFLINE
            try:
                with hub_offline_if_unreachable(name):
                    # The library keeps a switch of its own; without it, it retries before it looks in its cache.
                    datasets.config.HF_HUB_OFFLINE = before or not hub_reachable()
                    return datasets.load_dataset(name, config, split=split, revision=revision)
            finally:
                datasets.config.HF_HUB_OFFLINE = before
        if not folder.is_dir():
            hint = "use data=jsonl for a single file" if folder.exists() else "check data.name"
            raise DiagError("no such dataset folder", where=folder, hint=hint)
        if not ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
            return datasets.load_dataset(str(folder), config, split=split)
        loaded = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise DiagError("no such split", where=folder, got=split, expected=f"one of {', '.join(loaded)}")
            return loaded[split]
        return loaded
    except DiagError:
        raise
    except Exception as error:  # the library raises many unrelated types for a wrong name
        raise _hub_error(name, split, error) from error


def _hub_error(name: str, split: str, error: Exception) -> DiagError:
    text = f"{type(error).__name__}: {error}"
    offline = any(word in text for word in ("Offline", "offline", "ConnectionError", "ConnectError", "Couldn't reach"))
    if offline:
        return DiagError(
            "the data set is not in the local cache and the hub cannot be reached",
            where=name,
            hint="connect, unset HF_HUB_OFFLINE, or read a local file with data=jsonl data.path=...",
        )
    if "split" in text.lower() and split in text:
        return DiagError("no such split", where=name, got=split, expected=shorten(str(error), 160))
    if "gated" in text.lower() or "401" in text or "403" in text:
        return DiagError("the data set asks for a login", where=name, hint="ask for access there, then `hf auth login`")
    return DiagError("the data set cannot be loaded", where=name, got=shorten(text, 200), hint="check data.name")


def prompt_key(prompt: Any) -> str:
    """Identity of a prompt for splitting: case and white space do not make another prompt."""
    text = " ".join(render(prompt).casefold().split())
    return hashlib.sha256(text.encode()).hexdigest()


def split_pairs(rows: Sequence[Row], held_out: float | int = 0.1, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """(train, held out), both in the source's order; no prompt stands on both sides.

    A prompt's place on [0, 1) is a hash of its text and the seed. `held_out` below 1 is a share: the prompts below it
    are held out, whatever other rows there are, so that adding data moves no pair from one side to the other. From 1 on
    it is a number of pairs: whole prompts in the order of their places, up to that number. At least one prompt
    stands on each side.

    Raises:
        DiagError: a held-out share or number that leaves nothing to train on, or fewer than two prompts.
    """
    if held_out < 0 or held_out >= max(len(rows), 1):
        raise DiagError(
            "nothing would be left to train on",
            where="data.held_out",
            got=held_out,
            expected=f"a share in [0, 1) or a number below the {len(rows)} pairs",
        )
    if held_out == 0:
        return list(rows), []
    keys = [prompt_key(row["prompt"]) for row in rows]
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DiagError(
            "all pairs share one prompt: held-out pairs would leak", where="data.held_out", hint="set data.held_out=0"
        )
    place = {key: int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:16], 16) / 2**64 for key in sizes}
    ordered = sorted(sizes, key=lambda key: (place[key], key))
    if held_out < 1:
        chosen = [key for key in ordered if place[key] < held_out]
    else:
        chosen, total = [], 0
        for key in ordered:
            if total + sizes[key] <= held_out:
                chosen.append(key)
                total += sizes[key]
    aside = set((chosen or ordered[:1])[: len(ordered) - 1])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in aside]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in aside]


def without_prompts_of(rows: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(rows whose prompt is not in `held_out`, the others): for a held-out set that comes from a file of its own."""
    there = {prompt_key(row["prompt"]) for row in held_out}
    flags = [prompt_key(row["prompt"]) in there for row in rows]
    kept = [row for row, leaks in zip(rows, flags, strict=True) if not leaks]
    return kept, [row for row, leaks in zip(rows, flags, strict=True) if leaks]
