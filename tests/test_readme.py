"""What README and CHANGELOG promise exists: commands, Hydra options, rules of a gate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_diag.commands.diag import COMMANDS
from dpo_diag.config import conf_dir
from dpo_diag.gate.rules import load_rules

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_that_readme_prints_exists_and_changelog_names_all() -> None:
    named = set(re.findall(r"dpo-diag ([a-z]+)\b", README))
    assert {"explain", "outputs", "report", "import"} <= named
    assert named <= set(COMMANDS)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}`" not in changes and f"dpo-diag {name}`" not in changes] == []


@pytest.mark.parametrize("group", ["experiment", "model", "data", "loss", "peft", "prompts", "tracking"])
def test_every_option_that_readme_prints_exists(group: str) -> None:
    named = set(re.findall(rf"(?<![\w.-]){group}=(\w+)", README))
    assert named <= {p.stem for p in (conf_dir() / group).glob("*.yaml")}


def test_the_rules_that_readme_prints_are_rules(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    (tmp_path / "gate.yaml").write_text(block, encoding="utf-8")
    rules = load_rules(tmp_path / "gate.yaml")
    assert [rule.get("metric", rule.get("finding")) for rule in rules] == ["score/execution_accuracy", "DVG001"]
