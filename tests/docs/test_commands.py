"""Every command that README and docs print is run, or says in the page why no test can.

`dpo-diag`, `dpo-score`, `dpo-generate` and the scripts of analysis/ run as they stand, on small files of the names that
the pages use. `dpo-train` composes and passes its checks: that a training runs is tests/training's. A command that
several pages print runs once.
"""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dpo_diag import load_run
from dpo_diag.commands.diag import COMMANDS, main
from dpo_diag.commands.hydra_app import SCHEMAS, register, run_app, to_config
from dpo_diag.commands.overrides import explain_override
from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checks import check
from tests.docs.pages import ROOT, WRITTEN, Block, Page, commands

PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLACEHOLDERS = {"RUN": "runs/example", "LOG": "trainer_state.json"}
SHELLS = [page for page in WRITTEN if any(block.language == "sh" for block in page.blocks)]
FIRST_READ = {"README.md", "docs/start/log.md", "docs/install.md"}
"""What a newcomer types; the other pages' commands run with the slow tests."""
_SEEN: set[tuple[Path, tuple[str, ...]]] = set()


@pytest.mark.filterwarnings("ignore::UserWarning:hydra")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.name in FIRST_READ else pytest.mark.slow) for page in SHELLS],
    ids=lambda page: page.name,
)
def test_commands_run(page: Page, workbench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workbench)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    for block in (b for b in page.blocks if b.language == "sh"):
        for command in commands(block):
            words = tuple(PLACEHOLDERS.get(word, word) for word in command.words)
            if (workbench, words) in _SEEN:
                continue
            _SEEN.add((workbench, words))
            program = words[0].removeprefix(".venv/bin/")
            run = _known if block.not_run else RUNNERS.get(program, _known)
            assert run(words) == command.status, f"{page.name}, line {command.line}: {' '.join(command.words)}"


def test_pages_that_explain_a_door_print_commands() -> None:
    """The parser sees them: no page's commands are passed over for want of a language."""
    shells = {page.name for page in SHELLS}
    assert {"README.md", "README.zh-CN.md", "docs/start/log.md", "docs/start/checkpoints.md"} <= shells
    bare = [(p.name, b.line) for p in WRITTEN for b in p.blocks if b.language != "sh" and _is_shell(b)]
    assert bare == []


@pytest.mark.parametrize(
    "page", [p for p in WRITTEN if any(b.language == "python" for b in p.blocks)], ids=lambda page: page.name
)
def test_python_runs(page: Page, workbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the three names that a script of one's own has: model, args, data."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "example").symlink_to(workbench / "runs" / "example")
    for name in ("pairs.jsonl", "prompts.jsonl", "org"):
        (tmp_path / name).symlink_to(workbench / name)
    monkeypatch.chdir(tmp_path)
    for block in (b for b in page.blocks if b.language == "python" and not b.not_run):
        names = _script(workbench / "org" / "model") if "DPOTrainer(" in block.text else {}
        exec(compile(block.text, page.name, "exec"), names)
    # A callback swallows what goes wrong in it: the run that it wrote tells.
    for run in map(load_run, {*(tmp_path / "runs").iterdir()} - {tmp_path / "runs" / "example"}):
        assert run.info.status == "finished" and run.alerts["message"].tolist() == []


def _is_shell(block: Block) -> bool:
    return bool(re.match(r"(\$ )?(dpo-|make |pip |python )", block.text))


def _script(model_folder: Path) -> dict[str, object]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from tests.training.tiny import arguments, make_pairs

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    return {"model": model, "args": arguments("out", max_steps=1), "data": Dataset.from_list(make_pairs(6))}


def _train(words: Sequence[str]) -> int:
    """Composed and checked; a multirun with the first and with the last of its values."""
    if "--cfg" in words:
        return run_app("dpo-train", "config", lambda cfg: None, list(words[1:]))
    given = [word for word in words[1:] if not word.startswith("-")]
    assert explain_override(given, Config) is None
    register()
    ways = [given]
    if "-m" in words:
        swept = [word.partition("=") for word in given]
        ways = [[f"{key}={values.split(',')[which]}" for key, _, values in swept] for which in (0, -1)]
    for overrides in ways:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            check(to_config(compose("config", overrides=overrides)))
    return 0


def _score(words: Sequence[str]) -> int:
    from dpo_diag.commands.score import job

    return run_app("dpo-score", "score", job, [*words[1:], "batch_size=64"])


def _generate(words: Sequence[str]) -> int:
    from dpo_diag.commands.generate import job

    return run_app("dpo-generate", "generate", job, [*words[1:], "prompts.max_new_tokens=4"])


def _python(words: Sequence[str]) -> int:
    sys.argv = [str(ROOT / words[1]), *words[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def _known(words: Sequence[str]) -> int:
    """A command that is not run: the program, its subcommand and its overrides exist."""
    program = words[0].removeprefix(".venv/bin/")
    extras = PACKAGE["project"]["optional-dependencies"]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        assert set(words[1:]) <= set(targets)
    elif program == "pip" and words[2].startswith("."):
        assert set(re.findall(r"[\w-]+", words[2])) <= set(extras)
    elif program == "dpo-diag":
        assert words[1] in COMMANDS
    elif program in ("torchrun", "accelerate", "dpo-train", "dpo-score", "dpo-generate"):
        given = [word for word in words if re.match(r"[a-z_.]+=", word) and not word.startswith("resume=")]
        (app,) = {word.rpartition("-")[2].rpartition(".")[2] for word in words} & {"train", "score", "generate"}
        assert explain_override(given, SCHEMAS[{"train": "config"}.get(app, app)]) is None
    else:
        assert program in {"pip", "pre-commit"}, words
    return 0


RUNNERS: dict[str, Callable[[Sequence[str]], int]] = {
    "dpo-diag": lambda words: main(list(words[1:])),
    "dpo-train": _train,
    "dpo-score": _score,
    "dpo-generate": _generate,
    "python": _python,
}
