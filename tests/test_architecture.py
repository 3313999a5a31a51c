"""The house's plan: imports go down or sideways within a wing; the right wing leaves torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dpo_diag"
GROUND = {"records", "config", "config_checkpoints", "losses", "errors"}
LEFT = {"data", "models", "inference", "training", "tasks"}
RIGHT = {"importers", "diagnosis", "outputs", "gate", "report", "review"}
SHARED = {"tracking", "serving"}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            if node.module == "dpo_diag":
                found |= {f"dpo_diag.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def files(names: set[str]) -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0].removesuffix(".py") in names)


def violations(names: set[str], forbidden: set[str]) -> list[str]:
    found = []
    for path in files(names):
        for module in imports(path):
            if module.startswith("dpo_diag.") and room(module) in forbidden:
                found.append(f"{path.relative_to(PACKAGE)} imports {module}")
    return found


def test_the_ground_floor_imports_nothing_above_it() -> None:
    assert violations(GROUND, LEFT | RIGHT | SHARED | {"commands"}) == []


def test_the_wings_never_import_each_other_nor_the_commands() -> None:
    assert violations(LEFT, RIGHT | {"commands"}) == []
    assert violations(RIGHT | SHARED, LEFT | {"commands"}) == []


def test_the_right_wing_names_no_heavy_package() -> None:
    found = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in files(RIGHT | GROUND | SHARED)
        for module in imports(path)
        if module.split(".")[0] in HEAVY
    ]
    assert found == []


def test_every_room_has_its_place() -> None:
    known = GROUND | LEFT | RIGHT | SHARED | {"commands", "conf"}
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} <= known


@pytest.mark.parametrize("room_name", sorted(RIGHT | SHARED))
def test_importing_the_right_wing_leaves_torch_out(room_name: str) -> None:
    modules = [
        ".".join(("dpo_diag", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for p in files({room_name})
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {['dpo_diag', 'dpo_diag.commands.diag', *modules]!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"
