"""A table as Markdown, for trackers that show text."""

from __future__ import annotations

from typing import Any

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; line ends and bars of its cells escaped."""

    def row(cells: Any) -> str:
        shown = ("" if c is None or c != c else f"{c:.6g}" if isinstance(c, float) else str(c) for c in cells)
        return "| " + " | ".join(s.replace("|", "\\|").replace("\n", " ⏎ ") for s in shown) + " |"

    lines = [row(table.columns), row(["---"] * table.shape[1]), *(row(r) for r in table.itertuples(index=False))]
    return "\n".join(lines)
