"""`dpo-diag checks`: the table, one page, JSON, and docs/checks/ as the files make it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.checks import CHECKS
from dpo_diag.diagnosis.checks.shared.pages import write_pages

DOCS = Path(__file__).resolve().parents[2] / "docs" / "checks"


def test_the_table_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["code", "title", "severity", "needs"]
    assert [line.split()[0] for line in lines[1:-1]] == sorted(CHECKS)
    assert lines[-1] == "next: dpo-diag checks DVG001"


def test_a_page_holds_why_thresholds_and_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """DVG004's bad example: 2 of 40 pairs, 5 %, carry everything."""
    assert main(["checks", "dvg004"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# DVG004 a few hard pairs dominate\n")
    assert "| `few_pairs_min_share` | 0.5 | carry half of the gross rise (symmetric noise: a quarter) |" in page
    assert "2 of 40 pairs carry 100 % of the rise of chosen ppl_seq_mean" in page
    assert "the rise is spread over many pairs" in page


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks", "DVG016", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["thresholds"] == {
        "spike_mads": 6.0, "spike_window": 7.0, "spike_min_share": 0.2, "spike_min_rows": 10.0,
        "spike_false_logs": 0.01, "spike_upper_quantile": 0.9, "spike_tail_factor": 1.5,
    }  # fmt: skip
    assert [document["examples"][k]["outcome"] for k in ("speaks", "silent")] == ["speaks", "silent"]


def test_an_unknown_code_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checks", "DVG999"]) == 2
    assert "unknown check; got DVG999; expected one of DVG001" in capsys.readouterr().err


def test_the_committed_pages_are_those_of_the_files(tmp_path: Path) -> None:
    names = write_pages(tmp_path)
    assert sorted(p.name for p in DOCS.iterdir()) == names, "dpo-diag checks --write docs/checks"
    for name in names:
        assert (DOCS / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), name
