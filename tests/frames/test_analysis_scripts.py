"""The scripts of analysis/: what they print of the example, and their last words on a run that lacks what they need."""

from __future__ import annotations

import ast
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.frames.test_run import logged

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPOSITORY / "analysis").glob("*.py"))


def run_script(script: Path, *words: str) -> None:
    before, sys.argv = sys.argv, [str(script), *words]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_they_use_the_public_api_alone(script: Path) -> None:
    named = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add(str(node.module))
    # dpo_diag.text: what a spreadsheet would run is defused where a script writes CSV.
    assert {name for name in named if name.startswith("dpo_diag")} - {"dpo_diag.text"} == {"dpo_diag"}


@pytest.mark.parametrize(
    ("script", "last_words"),
    [
        ("explain_divergence", "holds no pairs"),
        ("compare_outputs", "the run holds no answers to fixed prompts"),
    ],
)
def test_a_log_ends_in_one_line(script: str, last_words: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(REPOSITORY / "analysis" / f"{script}.py", str(logged(tmp_path / "log")))
    assert last_words in str(ended.value)
    assert "\n" not in str(ended.value)


def test_no_run_ends_in_one_line(tmp_path: Path) -> None:
    for script in SCRIPTS:
        with pytest.raises(SystemExit, match="no run folder"):
            run_script(script, str(tmp_path / "none"))


def test_what_the_checkpoints_of_the_example_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(REPOSITORY / "runs" / "example", tmp_path / "example")
    run_script(REPOSITORY / "analysis" / "compare_outputs.py", str(folder))
    printed = capsys.readouterr().out
    assert "49 answers went from right to wrong and 21 from wrong to right" in printed
    assert "'ORDER BY'" in printed
    assert len((folder / "compare_outputs.jsonl").read_text(encoding="utf-8").splitlines()) == 300
