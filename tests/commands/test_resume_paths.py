"""resume=RUN where Hydra's grammar would want quotes: the job sees that folder and that run's own overrides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.overrides import explain_override, quoted

PATHS = ["läufe/β, a=b", 'it\'s "so"', "[1]{2}(3)/100%$HOME", "null"]
MORE = ["with space", "数据/新加卷2", "back\\slash~#&!", "'quoted'", "12", "a:b+c"]


def resumed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, Any, list[str]]:
    """(output folder, cfg.resume, cfg.name and cfg.seed) of a job that only looks."""
    seen: list[Any] = []

    def job(cfg: Any) -> None:
        seen.append((HydraConfig.get().runtime.output_dir, cfg.resume, [cfg.name, cfg.seed]))

    status = run_app("dpo-train", "config", job, list(arguments))
    assert status == 0, capsys.readouterr().err
    return seen[0]  # type: ignore[no-any-return]


def a_run(folder: Path) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- name='vergleich β'\n- seed=3\n- resume=x\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [*PATHS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_the_path_as_it_is_or_in_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = a_run(tmp_path / "runs" / name)
    relative = os.path.join("runs", name)
    for typed in (f"resume={relative}", f"resume={quoted(relative)}", f"resume={folder}", f"++resume={relative}"):
        assert resumed(capsys, typed, "seed=4") == (
            str(folder),
            typed_path(typed, folder, relative),
            ["vergleich β", 4],
        )


def typed_path(typed: str, folder: Path, relative: str) -> str:
    return str(folder) if typed == f"resume={folder}" else relative


def test_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    folder = a_run(tmp_path / "läufe" / "β, 2=3")
    (tmp_path / "link").symlink_to(folder)
    assert resumed(capsys, "resume=link")[:2] == (str(folder), "link")


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app("dpo-train", "config", print, [f"resume='{tmp_path}/β'"]) == 2
    assert f"nothing to resume; in {tmp_path}/β;" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["数据.jsonl", "läufe/a,b.jsonl", "it's.jsonl", "a=b/ü.jsonl"])
def test_the_hint_is_what_works(value: str) -> None:
    """The hint ends in the override as a shell takes it; without its shell quotes Hydra reads it as the path."""
    import shlex

    reason = explain_override([f"data.path={value}"])
    assert reason is not None and "letters beyond ASCII" in reason
    (fixed,) = shlex.split(reason.partition("in quotes: ")[2])
    assert explain_override([fixed]) is None and fixed == f"data.path={quoted(value)}"


def test_a_null_replay_trains_in_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the folder that is thrown away, in which a replay works; and a null beside resume= changes nothing."""
    monkeypatch.chdir(tmp_path)
    for argument in ("replay=null", "++replay=null"):
        assert Path(resumed(capsys, argument)[0]).is_relative_to(tmp_path / "runs")
    folder = a_run(tmp_path / "runs" / "a")
    assert resumed(capsys, "replay=null", f"resume={folder}")[0] == str(folder)
    assert run_app("dpo-train", "config", print, [f"resume={folder}", f"replay={folder}/alerts/step-1"]) == 2
    assert "one of them" in capsys.readouterr().err
