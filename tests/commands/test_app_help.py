"""--help of the Hydra apps, and a mistake that leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_diag.commands import generate, score, train
from dpo_diag.commands.app_help import APPS, group_options, help_text
from dpo_diag.commands.hydra_app import SCHEMAS, remove_if_bare, run_app
from dpo_diag.commands.overrides import could_not_override, explain_override

JOBS = {"dpo-train": train.job, "dpo-score": score.job, "dpo-generate": generate.job}


@pytest.mark.parametrize("name", APPS)
def test_help_says_what_the_app_does_with_three_examples_that_compose(name: str) -> None:
    text = help_text(name, 80)
    assert text.startswith(APPS[name].about[:40]) and len(APPS[name].examples) == 3
    assert all(len(line) <= 80 for line in text.splitlines()) and len(text.splitlines()) < 90
    assert not [other for other in APPS if other != name and other in text]
    for command, _ in APPS[name].examples:
        words = [word.strip("'") for word in command.split()[1:] if word != "-m"]
        assert command.startswith(f"{name} ") and explain_override(words, SCHEMAS[APPS[name].config]) is None


def test_only_what_an_app_takes_is_listed() -> None:
    """Scoring names its pairs itself, so the task's own data are refused; only a training has an optimiser."""
    assert group_options(APPS["dpo-score"])["data"] == ["hub", "jsonl", "sharegpt"]
    assert group_options(APPS["dpo-generate"]) == {"prompts": ["file"]}
    assert "trainer." in help_text("dpo-train") and "trainer." not in help_text("dpo-score")


@pytest.mark.parametrize("name", APPS)
def test_help_composes_nothing(name: str) -> None:
    code = (
        "import sys; from dpo_diag.commands import apps\n"
        f"sys.argv = ['{name}', '--help']; apps.{name.removeprefix('dpo-')}()\n"
        "print(sorted({'hydra', 'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_whose_reader_went_away_is_no_traceback() -> None:
    """`dpo-train --help | head -1`: the pipe's other end is closed before anything is written."""
    code = "from dpo_diag.commands import apps; import sys; sys.argv = ['dpo-train', '--help']; sys.exit(apps.train())"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", code], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("guards.actions.loss_spike=skip", "is not set so far; hint: a new key below guards.actions is added as "
         "+guards.actions.loss_spike=skip"),
        ("checks.guards.spike_mad=6", "unknown key 'checks.guards.spike_mad'; did you mean checks.guards.spike_mads?"),
        ("paths.runs=x", "unknown key 'paths.runs'; hint: --help lists the keys"),
    ],
)  # fmt: skip
def test_a_key_that_hydra_refuses_is_told_with_what_to_type(
    override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra's own words (`Could not override`, `full_key`) reach nobody."""
    assert run_app("dpo-train", "config", train.job, ["model.name=x", "data.path=x.jsonl", override]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1 and "full_key" not in printed
    assert could_not_override("In 'config': something else") is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dpo-train", ["model.name=nowhere", "data.path=no/such/pairs.jsonl"]),
        ("dpo-train", ["model.name=nowhere", "data.path=x.jsonl", "nosuch=1"]),
        ("dpo-train", ["model.name=nowhere", "data.path=x.jsonl", "loss=nosuch"]),
        ("dpo-train", ["model.name=nowhere", "data.path=x.jsonl", "loss.types=[nosuch]"]),
        ("dpo-score", ["checkpoints=x", "data.path=no/such/pairs.jsonl"]),
        ("dpo-score", ["data.path=no/such/pairs.jsonl"]),
        ("dpo-generate", ["checkpoints=x", "prompts.path=no/such/prompts.jsonl"]),
    ],
)
def test_a_mistake_leaves_no_folder(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    status = run_app(name, APPS[name].config, JOBS[name], [*arguments, f"output_root={root}"])
    assert status in (1, 2) and capsys.readouterr().err.startswith(f"{name}: ")
    assert not root.exists()


def test_a_folder_that_holds_something_stays(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "name" / "time"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "data_issues.csv").write_text("why\n")
    remove_if_bare(folder)
    assert folder.is_dir()
    (folder / "data_issues.csv").unlink()
    (tmp_path / "root" / "other").mkdir()
    remove_if_bare(folder)
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["other"]
