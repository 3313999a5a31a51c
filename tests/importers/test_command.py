"""`dpo-diag import`: what it prints, its exit status, strict JSON, the table of names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.importers import FORMATS
from dpo_diag.importers.keys import place
from dpo_diag.records.metric_aliases import ALIASES


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": NaN, "rewards/chosen": 0.1}\nbroken\n')
    return path


def test_json_is_one_strict_document_with_the_stable_keys(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(log), "--out", str(tmp_path / "run"), "--json"]) == 0
    out = capsys.readouterr().out

    def refuse(name: str) -> None:
        raise AssertionError(name)

    result = json.loads(out, parse_constant=refuse)
    assert {"run", "format", "rows", "read", "skipped", "merged"} <= set(result)
    assert (result["run"], result["format"], result["rows"], result["read"]) == (str(tmp_path / "run"), "jsonl", 2, 1)
    assert result["skipped"][0]["line"] == 2
    assert result["merged"] == []


def test_the_last_line_is_the_run_folder_alone(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(log)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "runs/imported/log"
    assert (tmp_path / "runs" / "imported" / "log" / "run.json").is_file()
    assert "line 2: not JSON" in captured.err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "no file named"),
        (["absent.log"], 2, "no such file or folder"),
        (["LOG", "--as", "nothing"], 2, "unknown format"),
        (["LOG", "--loss", "dpoo"], 2, "unknown loss type"),
        (["LOG", "--beta", "-1"], 2, "beta is a positive number"),
        (["LOG", "--label-smoothing", "0.7"], 2, "label smoothing"),
        (["LOG", "--loss", "sigmoid,sft", "--loss-weights", "1"], 2, "one weight per loss type"),
        (["LOG", "--as", "h2o"], 1, "broken JSON"),
    ],
)
def test_mistakes_are_one_line_and_a_status(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str
) -> None:
    given = [str(log) if a == "LOG" else a for a in arguments]
    assert main(["import", *given, "--out", str(tmp_path / "run")]) == status
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_a_sources_own_text_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": "\\u001b[2Jx"}\n')
    assert main(["import", str(path), "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


def test_formats_prints_every_format_and_every_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--formats"]) == 0
    text = capsys.readouterr().out
    for form in FORMATS.values():
        assert form.name in text
        assert form.description in text
    for alias in ALIASES:
        assert alias.key in text
        assert alias.meaning in text
    assert main(["import", "--formats", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["names"]) == len(ALIASES)


@pytest.mark.parametrize("alias", ALIASES, ids=lambda a: f"{a.trainer}:{a.key}")
def test_every_alias_resolves_to_its_name(alias: object) -> None:
    from dpo_diag.records.metric_aliases import Alias

    assert isinstance(alias, Alias)
    found = place(alias.key, alias.trainer)
    assert found is not None
    wanted = alias.name.removeprefix("eval/")
    assert (found.name, found.split, found.known) == (wanted, "eval" if alias.name != wanted else "train", True)


@pytest.mark.parametrize(
    ("key", "split", "name"),
    [
        ("train/loss", "train", "loss"), ("eval/loss", "eval", "loss"), ("validation_loss", "eval", "loss"),
        ("eval_rewards/chosen", "eval", "rewards/chosen"), ("eval/helpful_loss", "eval_helpful", "loss"),
        ("eval_helpful/rewards/chosen", "eval_helpful", "rewards/chosen"), ("test/loss", "eval_test", "loss"),
        ("rewards_eval/rejected", "eval", "rewards/rejected"), ("logps_train/chosen", "train", "logps/chosen"),
        ("logps_eval_prob_train/chosen", "eval_prob_train", "logps/chosen"), ("Training Loss", "train", "loss"),
        ("rewards / margins", "train", "rewards/margins"), ("eval_my_score", "eval", "my_score"),
        ("custom/thing", "train", "custom/thing"), ("additional_log_reward_margin", "train", "rewards/margins"),
        ("loss/train", "train", "loss"), ("train/rewards/accuracies", "train", "rewards/accuracies"),
    ],
)  # fmt: skip
def test_places(key: str, split: str, name: str) -> None:
    found = place(key)
    assert found is not None
    assert (found.split, found.name) == (split, name)


def test_importing_needs_no_torch() -> None:
    import subprocess
    import sys

    script = (
        "import sys; from dpo_diag.importers import FORMATS\n"
        "assert len(FORMATS) > 10; import dpo_diag.commands.import_log\n"
        "assert not {'torch', 'transformers', 'trl', 'datasets', 'wandb', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
