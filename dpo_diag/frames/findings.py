"""An explanation as an object: the document, its frames, and how it prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from dpo_diag.diagnosis import Explanation
from dpo_diag.diagnosis.printed import render_document
from dpo_diag.text import some


class Findings(Mapping[str, Any]):
    """What `dpo-diag explain --json` prints, read as a mapping; printed, it reads as `dpo-diag explain` does.

    Attributes:
        document: the whole document (see docs/design.md, section 6), strict JSON values.
    """

    def __init__(self, explanation: Explanation) -> None:
        self.document: dict[str, Any] = explanation.document
        self._explanation = explanation

    def __getitem__(self, key: str) -> Any:
        return self.document[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.document)

    def __len__(self) -> int:
        return len(self.document)

    @property
    def verdict(self) -> str:
        """The verdict's label."""
        return str(self.document["verdict"]["label"])

    @property
    def pairs(self) -> pd.DataFrame:
        """Every pair of the comparison, one row each, those that carry the rise of chosen `ppl_seq_mean` first: the
        document's `pairs`, whole. Empty for a run that holds means only."""
        return self._explanation.pairs

    @cached_property
    def checks(self) -> pd.DataFrame:
        """Every check: `code`, `title`, `outcome` (speaks | silent | not_applicable), `severity`, `reason`."""
        names = ["code", "title", "outcome", "severity", "reason"]
        rows = [[check.get(name) for name in names] for check in self.document["checks"]]
        return pd.DataFrame(rows, columns=names).astype({"outcome": "category", "severity": "category"})

    def texts(self) -> pd.DataFrame:
        """`pair_id`, `prompt`, `chosen`, `rejected` of `pairs`, in its order; null where not recorded."""
        return self._explanation.texts(self.pairs["pair_id"].tolist() if len(self.pairs) else [])

    def __str__(self) -> str:
        return render_document(self.document)

    def __repr__(self) -> str:
        run, verdict = self.document["run"], self.document["verdict"]
        spoke = some([check["code"] for check in self.document["checks"] if check["outcome"] == "speaks"]) or "nothing"
        return f"Findings({run!r}, verdict={verdict['label']!r}, harm={verdict['harm']!r}, speaks={spoke!r})"

    def _repr_html_(self) -> str:
        from dpo_diag.frames.page import findings_html

        return findings_html(self.document)
