"""What a hint tells the user to write exists: every KEY=VALUE is a key of a configuration, every group an option."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from dpo_diag.commands.overrides import valid_keys
from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checkpoints import GenerateConfig, ScoreConfig

PACKAGE = Path(__file__).resolve().parents[1] / "dpo_diag"
HOLE = "\0"
GIVEN = re.compile(rf"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)*)=(?!=)([\w{HOLE}]*)")
NO_OVERRIDES = {"resume_step", "tokenizer", "other", "mine", "precompute_ref_log_probs"}
"""Arguments of Python functions, and names that checkpoints are given (`mine=PATH`)."""


@cache
def keys() -> set[str]:
    """Every key that some configuration has, with its prefix."""
    tables = [valid_keys(schema) for schema in (Config, ScoreConfig, GenerateConfig)]
    return {
        f"{prefix}.{name}" if prefix else name for table in tables for prefix, names in table.items() for name in names
    }


def texts_of(node: ast.expr) -> str:
    """A string's own text, with a hole where it is filled in later."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(texts_of(v) if isinstance(v, ast.Constant) else HOLE for v in node.values)
    if isinstance(node, ast.IfExp):
        return f"{texts_of(node.body)} | {texts_of(node.orelse)}"
    if isinstance(node, ast.BinOp):
        return texts_of(node.left) + texts_of(node.right)
    return ""


def named_options() -> list[tuple[str, str, str]]:
    """(file and line, key, value) of every KEY=VALUE in a hint, an expectation, or a variable called so."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said: list[ast.expr] = []
            if isinstance(node, ast.Call):
                said = [k.value for k in node.keywords if k.arg in ("hint", "expected", "where")]
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                said += node.args[2:3] if name == "BadRow" else node.args[5:6] if name == "refusal" else []
            elif isinstance(node, ast.Assign) and "hint" in ast.unparse(node.targets[0]).lower():
                said = [node.value]
            for text in map(texts_of, said):
                found += [(f"{path.relative_to(PACKAGE)}:{node.lineno}", *m.groups()) for m in GIVEN.finditer(text)]
    return found


OPTIONS = named_options()


def test_hints_are_found() -> None:
    assert {("data.eval_share", "0"), ("data.columns.system", "false")} <= {(key, value) for _, key, value in OPTIONS}
    assert len(OPTIONS) > 20


@pytest.mark.parametrize(("place", "key", "value"), OPTIONS, ids=[place for place, _, _ in OPTIONS])
def test_what_a_hint_names_exists(place: str, key: str, value: str) -> None:
    if key in NO_OVERRIDES:
        return
    if key.startswith("trainer.args."):  # TRL's own, handed on
        from trl import DPOConfig

        assert key.removeprefix("trainer.args.") in DPOConfig.__dataclass_fields__
        return
    group = conf_dir() / key.replace(".", "/")
    if group.is_dir():
        options = {p.stem for p in group.glob("*.yaml")}
        assert not value or HOLE in value or value.isupper() or value in options, f"{key} has no option {value}"
    else:
        assert key in keys(), f"{key} is no key"
