"""The house's plan, read from the imports: a ground floor, two wings that never meet, no circle, no torch right."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dpo_diag"
GROUND = {
    "checkpoint_choice", "command_lines", "config", "config_checkpoints", "config_checks", "config_guards",
    "config_keep", "config_schedule", "config_sft", "documents", "ends", "errors", "extras", "losses", "next_steps",
    "paired", "records", "registry", "rows", "safe_streams", "shortages", "stats", "stopping", "styled", "text",
    "thresholds", "translated",
}  # fmt: skip
LEFT = {"data", "models", "inference", "training", "tasks"}
RIGHT = {"importers", "diagnosis", "outputs", "gate", "report", "review", "frames"}
SHARED = {"tracking", "serving"}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "hydra", "omegaconf", "wandb"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(p): p for p in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """The folder or file right below the package that a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that a file imports, inside functions too; what only type checkers see is left out."""
    named: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(FILES[module].read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            # `from package import module` needs the module; anything else needs the package's own file.
            named |= inside
            if len(inside) < len(node.names):
                named.add(node.module)
        nodes += ast.iter_child_nodes(node)
    return frozenset(named)


@cache
def reached(module: str) -> frozenset[str]:
    """Modules of the package that a module reaches, directly or through others."""
    seen: set[str] = set()
    rest = [module]
    while rest:
        for name in imports(rest.pop()):
            if name in FILES and name not in seen:
                seen.add(name)
                rest.append(name)
    return frozenset(seen)


def members(rooms: set[str]) -> list[str]:
    return [m for m in FILES if room(m) in rooms]


def violations(rooms: set[str], forbidden: set[str]) -> list[str]:
    return [f"{m} reaches {other}" for m in members(rooms) for other in sorted(reached(m)) if room(other) in forbidden]


def test_the_ground_floor_reaches_nothing_above_it() -> None:
    assert violations(GROUND, LEFT | RIGHT | SHARED | {"commands"}) == []


def test_the_wings_never_meet_not_even_through_a_third_room() -> None:
    assert violations(LEFT, RIGHT | {"commands"}) == []
    assert violations(RIGHT, LEFT | {"commands"}) == []
    assert violations(SHARED, LEFT | RIGHT | {"commands"}) == []


def first_circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_files() -> None:
    assert first_circle({m: {n for n in imports(m) if n in FILES and n != m} for m in FILES}) == []


def test_no_circle_of_folders() -> None:
    graph: dict[str, set[str]] = {}
    for module in FILES:
        graph.setdefault(room(module), set()).update(room(n) for n in imports(module) if n in FILES)
    assert first_circle({r: others - {r, ""} for r, others in graph.items()}) == []


def test_the_right_wing_names_no_heavy_package() -> None:
    allowed = {("dpo_diag.tracking.wandb_tracker", "wandb"), ("dpo_diag.importers.formats.wandb_run", "wandb")}
    named = {(m, n.split(".")[0]) for m in members(RIGHT | GROUND | SHARED) for n in imports(m)}
    assert sorted((m, n) for m, n in named - allowed if n in HEAVY) == []


def test_the_callback_and_the_probe_name_no_trl() -> None:
    """They bear any version of it: they stand in trainers that pin their own."""
    for module in ("dpo_diag.training.diag_callback", "dpo_diag.training.probe"):
        named = {(m, n) for m in {module, *reached(module)} for n in imports(m) if n.split(".")[0] == "trl"}
        assert named == set()


def test_every_room_has_its_place() -> None:
    assert {room(m) for m in FILES} - {""} == GROUND | LEFT | RIGHT | SHARED | {"commands"}


def test_a_python_that_is_started_imports_nothing_from_the_working_directory() -> None:
    """`python -m` and `-c` look there first, and a module that lies there would stand in for one of ours."""
    started = [(m, line) for m, file in FILES.items() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [m for m, line in started if "[sys.executable, " in line and '"-P"' not in line]
    assert found == ["dpo_diag.commands.sweep_resume"]  # which has a test of its own


@pytest.mark.parametrize("room_name", sorted(RIGHT | SHARED))
def test_importing_the_right_wing_leaves_torch_out(room_name: str) -> None:
    modules = ["dpo_diag", "dpo_diag.commands.diag", *members({room_name})]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"


def test_groups_are_those_that_occur() -> None:
    """pandas 2 makes a group of every combination of categories unless `observed=True`; pandas 3 does not."""
    silent = [
        f"{name_of(path)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "groupby"
        if not any(k.arg == "observed" for k in node.keywords)
    ]
    assert silent == []
