"""What a tracker was sent of a run, so that nothing is sent twice: RUN/tracked.json, beside the records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.records.checksums import read_json
from dpo_diag.records.files import write_json
from dpo_diag.tracking.base import metric_name

SENT_FILE = "tracked.json"


class Sent:
    """Per metric the last step that was sent and how many rows; of tables and the page their content's hash.

    Rows of one metric are sent in the order of their steps. A row that appears later at an earlier step of a metric
    that was sent already cannot be told from one that was: it is counted by `missed`, and not sent.
    """

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        found = document or {}
        history = found.get("history")
        self.history: dict[str, tuple[int, int]] = {
            str(name): (int(n), int(last)) for name, (n, last) in (history or {}).items()
        }
        self.hashes: dict[str, str] = dict(found.get("hashes") or {})

    @classmethod
    def read(cls, folder: Path, kind: str) -> Sent:
        """Of a run folder; nothing where the file is missing or is not ours."""
        try:
            return cls(_document(folder).get(kind))
        except (TypeError, ValueError, AttributeError):
            return cls()

    def write(self, folder: Path, kind: str) -> None:
        """Into the run folder, beside what other trackers were sent."""
        document = {"history": {k: list(v) for k, v in sorted(self.history.items())}, "hashes": self.hashes}
        write_json(folder / SENT_FILE, {**_document(folder), kind: document})

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """These values were sent."""
        for name in values:
            n, last = self.history.get(name, (0, step))
            self.history[name] = (n + 1, max(last, step))

    def new(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those values that were not sent yet."""
        return {k: v for k, v in values.items() if k not in self.history or self.history[k][1] < step}

    def new_rows(self, run: Run) -> pd.DataFrame:
        """step, epoch, name, value of the history's rows that were not sent, by step; `name` as trackers have it."""
        rows = named_history(run)
        return rows.loc[rows["step"].to_numpy() > self._last_steps(rows)]

    def missed(self, run: Run) -> list[str]:
        """Metrics that have rows now, at steps already passed, which were not there when they were sent."""
        rows = named_history(run)
        early = rows.loc[rows["step"].to_numpy() <= self._last_steps(rows)]
        counts = early.groupby("name", observed=True).size().to_dict()
        return sorted(str(name) for name, n in counts.items() if n > self.history[str(name)][0])

    def _last_steps(self, rows: pd.DataFrame) -> npt.NDArray[np.int64]:
        """The last step that was sent of each row's metric; -1 for one that was not. Shape (rows,)."""
        return np.array([self.history.get(str(name), (0, -1))[1] for name in rows["name"]], dtype=np.int64)

    def is_new(self, name: str, digest: str) -> bool:
        """Whether a table (or the findings) is not what was sent last."""
        return self.hashes.get(name) != digest


def named_history(run: Run) -> pd.DataFrame:
    """The history under the trackers' names, in the order of its steps."""
    history = run.history
    names = [metric_name(s, n) for s, n in zip(history["split"], history["name"], strict=True)]
    rows = history.assign(name=pd.Series(names, index=history.index, dtype="str"))[["step", "epoch", "name", "value"]]
    return rows.sort_values("step", kind="stable", ignore_index=True)


def _document(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / SENT_FILE)
    except (FileNotFoundError, DiagError):
        return {}
    return found if isinstance(found, dict) else {}


def digest_of(*contents: Any) -> str:
    """A hash of tables, files (by their bytes; None for none) and plain values, in their order."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, pd.DataFrame):
            data = content.to_json(orient="split", double_precision=15).encode()
        elif isinstance(content, Path):
            data = content.read_bytes()
        else:
            data = json.dumps(content, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]
