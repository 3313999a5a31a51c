"""Numbers that decide something stand in conf/checks/default.yaml with their reason, not in a check's file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dpo_diag.diagnosis import checks

FILES = sorted(Path(checks.__file__).parent.rglob("*.py"))
PLAIN = {0, 0.5, 1, 2, 3, 100}
"""Signs, halves, pairs, three digits, percent."""
NAMED = {"ROUNDING", "_ROUNDING", "LISTED", "WORST", "STAND_IN_BETA", "PERCENT"}
"""What rounding is, how much is shown, and a stand-in whose value changes no statement."""
EXAMPLES = {"register", "Example", "noise"}


def decides(file: Path) -> list[str]:
    """Numbers of a file outside its examples, named constants and default arguments, each with its line."""
    found, todo = [], list[ast.AST](ast.parse(file.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        named = [part for target in getattr(node, "targets", ()) for part in ast.walk(target)]
        targets = [part.id for part in named if isinstance(part, ast.Name)]
        # A module's private data are its examples'.
        if targets and (targets[0] in NAMED or targets[0].startswith("_")):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXAMPLES:
            continue
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value not in PLAIN:
            found.append(f"{file.name}:{node.lineno}: {node.value}")
        todo += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("file", [f for f in FILES if f.name not in ("example.py", "pages.py")], ids=lambda f: f.stem)
def test_no_check_holds_a_number_that_decides(file: Path) -> None:
    assert decides(file) == []


def test_a_number_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("LEAST = 7\nROUNDING = 9\ndef f(x):\n    return x > 0.25 and noise(40)\n")
    assert sorted(decides(tmp_path / "a.py")) == ["a.py:1: 7", "a.py:4: 0.25"]
