"""The page of a sweep: what stands on it, and what it leaves out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.report.sweep_plots import category_axis, number_axis
from tests.diagnosis.sweep_runs import scored_run

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def page(tmp_path: Path) -> str:
    for i, (score, ce) in enumerate(((0.6, 1.5), (0.5, 1.2), (0.4, 1.4))):
        scored_run(tmp_path / "runs" / str(i), (0.2, score), ce, f"beta={10.0**-i}", f"name={HOSTILE if i else 'x'}")
    (tmp_path / "runs" / "3" / ".hydra").mkdir(parents=True)
    target = tmp_path / "out" / "page.html"
    assert main(["sweep", f"{tmp_path}/runs", "--html", str(target)]) == 0
    return target.read_text()


def test_every_run_the_start_and_what_did_not_complete_stand_on_it(page: str) -> None:
    table = page[page.index('id="runs"') : page.index('id="unfinished"')]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert [row[:2] for row in rows] == [["", "before"], ["1", "0"], ["2", "1"], ["3", "2"]]
    assert "0.600 [0.502, 0.691]" in rows[1] and "Run 0 is best by acc, held out" in page
    assert "it ended before the first record" in page[page.index('id="unfinished"') :]
    for section in ("coordinates", "front", "knobs", "curves"):
        assert f'<section id="{section}"' in page
    assert 'id="seeds"' not in page  # no setting has two runs
    assert HOSTILE not in page and "<img" not in page


def test_the_whole_document_is_in_it(page: str) -> None:
    (found,) = re.findall(r'<script type="application/json" id="sweep">(.*?)</script>', page)
    document = json.loads(found)
    assert [r["status"] for r in document["runs"]] == ["completed"] * 3 + ["failed"]
    assert [Path(r).name for r in document["pareto"]] == ["0", "1"] and document["knobs"]


def test_axes() -> None:
    """Numbers from the lowest to the highest, by factors where asked; categories evenly; a missing value nowhere."""
    axis = number_axis("lr", [1e-4, 1e-2, None, 1e-3], log=True)
    assert axis.places == pytest.approx([0, 1, None, 0.5]) and axis.ticks[0] == (0, "0.0001")
    assert number_axis("x", [2.0, 3.0]).places == [0, 1] and number_axis("x", [None]).ticks == []
    assert category_axis("kind", ["b", "a"], ["a", "b", "c"]).places == [0.5, 0.0]
