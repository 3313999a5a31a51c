"""The registry of formats: each knows its own example, in an order with reasons; a plugin adds one from one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.importers import FORMATS
from dpo_diag.importers.log_format import detect, formats_in_order

TEXT_FORMATS = sorted(name for name, log_format in FORMATS.items() if log_format.example)


def test_the_formats_that_are_no_text_have_no_example() -> None:
    assert sorted(set(FORMATS) - set(TEXT_FORMATS)) == [
        "mlflow",
        "mlflow_db",
        "ren",
        "swanlab",
        "tensorboard",
        "trackio",
        "wandb",
    ]


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_format_recognises_its_own_example(tmp_path: Path, name: str) -> None:
    """Every format asked before it says no to it, too."""
    path = tmp_path / FORMATS[name].file_name
    path.write_text(FORMATS[name].example)
    assert detect(path).name == name


def test_formats_are_asked_by_number_and_any_text_comes_last() -> None:
    orders = [log_format.order for log_format in formats_in_order()]
    assert orders == sorted(orders)
    assert formats_in_order()[-1].name == "console"
    assert all(log_format.why for log_format in FORMATS.values())


@pytest.mark.parametrize(
    ("file_name", "content", "name"),
    [
        ("a.json", '[{"step": 1, "loss": 0.5}]', "hf"),
        ("a.json", '{"log_history": [{"step": 1, "loss": 0.5}, {"st', "hf"),
        ("a.json", '{"0": {"loss": 0.5}, "5": {"loss": 0.4}}', "hf"),
        ("a.json", '{"step": [1, 2], "loss": [0.5, 0.4]}', "hf"),
        ("a.json", '{"train": {"loss": {"steps": [1], "values": [0.5]}}, "vali', "h2o"),
        ("a.jsonl", '{broken}\n{"step": 1, "loss": 0.5}\n', "jsonl"),
        ("logging.jsonl", '{"loss": 0.5}\n', "swift"),
        ("trainer_log.jsonl", '{"loss": 0.5, "step": 1, "total_steps": 9}\n', "llamafactory"),
        ("a.csv", '"step","loss"\n1,0.5\n', "csv"),
        ("a.tsv", "pair_id\tstep\tchosen_sum_logp\trejected_sum_logp\n", "pairs"),
        ("a.log", "step, loss and time:\n{'loss': 0.5, 'epoch': 0.1}\n", "console"),
        ("a.log", "[rank0]: {'loss': 0.5}\n", "console"),
        ("a.log", '{"hello": "world"}\n', "console"),
    ],
)
def test_what_a_beginning_is_taken_for(tmp_path: Path, file_name: str, content: str, name: str) -> None:
    (tmp_path / file_name).write_text(content)
    assert detect(tmp_path / file_name).name == name


@pytest.mark.parametrize(("content", "message"), [(b" \n\0", "the file is empty"), (b"\x7fELF\0\1\2", "not a log")])
def test_what_is_no_log_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DiagError, match=message):
        detect(tmp_path / "a")


TOY = Path(__file__).resolve().parents[1] / "seam" / "toy" / "a_format.py"


def test_a_plugin_adds_a_format_from_one_file(tmp_path: Path) -> None:
    """Recognised, read and listed by the command; a process of its own, so that the format is in no other test."""
    (tmp_path / "toy_format.py").write_text(TOY.read_text())
    (tmp_path / "toy.log").write_text("@10 loss=0.5\n@20 loss=0.25\n")
    environment = {
        **os.environ,
        "DPO_DIAG_PLUGINS": "toy_format",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])]),
    }

    def dpo_diag(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "dpo_diag.commands.diag", "import", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    result = dpo_diag("toy.log", "--out", "run")
    assert (result["format"], result["trainer"], result["read"]) == ("toy", "toy-trainer", 2)
    assert "toy" in [form["name"] for form in dpo_diag("--formats")["formats"]]  # type: ignore[attr-defined]
