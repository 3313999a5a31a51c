"""What `pip install dpo-diag` brings is enough for everything that reads records, and holds no torch.

The wheel is built here and put, with its declared dependencies and nothing else, into an environment of its own: links
to the installed distributions, so that no network is needed. The slow test asks pip itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "trl", "wandb", "hydra-core", "gradio"}
LOG = [{"step": s, "loss": 0.693 - 0.01 * s, "rewards/chosen": -0.05 * s, "rewards/rejected": -0.1 * s,
        "rewards/margins": 0.05 * s, "rewards/accuracies": 0.8, "logps/chosen": -100 - 0.5 * s,
        "logps/rejected": -110.0 - s} for s in range(1, 30)]  # fmt: skip


def requirements_of(name: str) -> list[str]:
    """Names of the distributions that a distribution needs without an extra."""
    wanted = [Requirement(text) for text in metadata.requires(name) or []]
    return [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def lean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`lean("explain", LOG)`: a command of the wheel in an environment that holds its dependencies alone."""
    venv = tmp_path_factory.mktemp("lean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib*/python*/site-packages"), venv / "Lib" / "site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    own = next(site.glob("dpo_diag-*.dist-info"))
    rest, seen = requirements_of_file(own / "METADATA"), set()
    while rest:
        name = rest.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        rest += requirements_of(name)
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                os.symlink(Path(str(metadata.distribution(name).locate_file(top))), site / top)
    assert not seen & HEAVY, "a dependency of the lean install is heavy"

    def run(*arguments: str, module: str = "dpo_diag.commands.diag") -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [venv / "bin" / "python", "-I", "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=venv, env=environment)

    return run


def requirements_of_file(file: Path) -> list[str]:
    lines = [line.removeprefix("Requires-Dist: ") for line in file.read_text().splitlines()]
    wanted = [Requirement(line) for line, raw in zip(lines, file.read_text().splitlines(), strict=True) if line != raw]
    return [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(REPOSITORY / "runs" / "example", tmp_path_factory.mktemp("runs") / "example"))


def test_a_log_is_explained_and_imported(lean: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps({"log_history": LOG}))
    explained = lean("explain", str(log), "--json")
    assert explained.returncode == 0, explained.stderr
    assert json.loads(explained.stdout)["kind"] == "imported"
    imported = lean("import", str(log), "--out", str(tmp_path / "run"))
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.splitlines()[-1] == str(tmp_path / "run")


@pytest.mark.parametrize("command", ["explain", "outputs", "report", "sweep", "doctor"])
def test_a_run_is_read(lean: Callable[..., subprocess.CompletedProcess[str]], example: Path, command: str) -> None:
    done = lean(command, str(example), *(["--quick"] if command == "doctor" else []))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_run_is_judged_by_rules(
    lean: Callable[..., subprocess.CompletedProcess[str]], example: Path, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - metric: rewards/accuracies\n    split: eval\n    min: 0.5\n")
    done = lean("gate", str(example), "--rules", str(rules))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "1 passed" in done.stdout


def test_what_is_not_installed_is_named_with_its_extra(
    lean: Callable[..., subprocess.CompletedProcess[str]], example: Path
) -> None:
    for call, name, extra in (
        (lean("demo"), "dpo-diag demo", "train"),
        (lean("track", str(example)), "wandb", "wandb"),
        (lean("train", module="dpo_diag.commands.apps"), "dpo-train", "train"),
    ):
        assert call.returncode == 1
        assert name in call.stderr and f'[{extra}]"' in call.stderr and "Traceback" not in call.stderr


@pytest.mark.slow
def test_pip_brings_no_torch(wheel: Path, tmp_path: Path) -> None:
    """The real thing, over the network: the size that the README states is printed here."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    assert not {row["name"].lower() for row in json.loads(listed.stdout)} & HEAVY
    command = [tmp_path / "venv" / "bin" / "dpo-diag", "explain", str(REPOSITORY / "runs" / "example"), "--no-write"]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    print(sum(f.stat().st_size for f in (tmp_path / "venv" / "lib").rglob("*") if f.is_file()) / 1e6, "MB")
