"""Folders: a checkpoint or an output_dir with the trainer's state, its own log, TensorBoard and configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.importers import default_out
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value
from tests.importers.test_trackers import event_file


def state(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    return folder


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "rewards/chosen": 0.0, "rewards/rejected": 0.0, **values}


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """An output_dir as LLaMA-Factory leaves it: two checkpoints, its own log, events, the adapter's configuration."""
    folder = tmp_path / "saves" / "dpo"
    state(folder / "checkpoint-10", [row(10, loss=0.123456789)])
    state(folder / "checkpoint-20", [row(10, loss=0.123456789), row(20, loss=0.1)])
    (folder / "checkpoint-20" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8, "lora_alpha": 16})
    )
    (folder / "training_args.yaml").write_text("pref_beta: 0.2\npref_loss: sigmoid\npref_ftx: 0.0\n")
    (folder / "trainer_log.jsonl").write_text(
        '{"current_steps": 10, "total_steps": 30, "loss": 0.1235, "accuracy": 0.5}\n'
        '{"current_steps": 30, "total_steps": 30, "loss": 0.09, "accuracy": 1.0}\n'
    )
    event_file(folder / "runs" / "Nov01_host", [("train/loss", 0.123456789, 10), ("train/entropy", 1.5, 10)])
    return folder


def test_an_output_dir_is_merged_with_the_state_first(output_dir: Path, imported: Importing) -> None:
    result, run = imported(output_dir)
    assert result["format"] == "hf"
    assert sorted(Path(f).name.split(".")[0] for f in result["merged"]) == ["events", "trainer_log", "trainer_state"]
    assert value(run, "loss", 10) == 0.123456789
    assert (value(run, "loss", 20), value(run, "loss", 30)) == (0.1, 0.09)
    assert (value(run, "rewards/accuracies", 10), value(run, "entropy", 10)) == (0.5, 1.5)
    assert (result["trainer"], result["beta"], result["duplicates"]) == ("llama-factory", 0.2, 0)
    assert run.meta["loss"]["types"] == ["sigmoid"]
    assert run.meta["model"] == {
        "name": "org/base", "adapter": {"type": "LORA", "r": 8, "lora_alpha": 16}
    }  # fmt: skip
    assert not any("differ" in n for n in result["notes"])


def test_a_checkpoint_folder_finds_what_lies_above_it(output_dir: Path, imported: Importing) -> None:
    result, run = imported(output_dir / "checkpoint-10")
    assert steps(run, "loss") == [10, 30]
    assert result["beta"] == 0.2


def test_sources_that_disagree_are_noted(output_dir: Path, imported: Importing) -> None:
    log = output_dir / "trainer_log.jsonl"
    log.write_text(log.read_text().replace("0.1235", "0.9"))
    result, run = imported(output_dir)
    assert value(run, "loss", 10) == 0.123456789
    assert "trainer_log.jsonl: 1 values differ from the first source's, which were kept" in result["notes"]


def test_several_files_named_together_are_merged(tmp_path: Path, imported: Importing) -> None:
    (tmp_path / "train.log").write_text("{'loss': '0.6931', 'step': 1}\n{'loss': '0.5', 'step': 2}\n")
    state(tmp_path / "x", [{"step": 1, "loss": 0.693147}])
    result, run = imported([tmp_path / "train.log", tmp_path / "x" / "trainer_state.json"])
    assert (value(run, "loss", 1), value(run, "loss", 2)) == (0.693147, 0.5)
    assert result["format"] == "hf"
    assert len(result["merged"]) == 2


def test_the_model_card_names_trls_version(tmp_path: Path, imported: Importing) -> None:
    folder = state(tmp_path / "out", [row(1, loss=0.6, **{"logps/chosen": -1.5})])
    (folder / "config.json").write_text('{"_name_or_path": "other", "beta": 9.0, "loss_type": "hinge"}')
    (folder / "README.md").write_text("---\nbase_model: org/base\n---\n### Framework versions\n\n- TRL: 0.12.1\n")
    result, run = imported(folder, loss=("ipo",), beta=0.1)
    assert (result["trainer"], result["trainer_version"]) == ("trl", "0.12.1")
    assert run.info.logps == "mean"
    assert run.meta["model"]["name"] == "other"
    assert run.meta["loss"]["beta"] == 0.1


def test_hostile_configuration_files_are_reported_not_run(tmp_path: Path, imported: Importing) -> None:
    folder = state(tmp_path / "out", [row(1, loss=0.6)])
    (folder / "config.yaml").write_text("!!python/object/apply:os.system ['touch /tmp/owned']\n")
    (folder / "adapter_config.json").write_text("{broken")
    (folder / "training_args.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    result, _ = imported(folder)
    assert sorted(s["file"] for s in result["skipped"]) == ["adapter_config.json", "config.yaml"]


def test_folders_without_or_with_several_logs(tmp_path: Path, imported: Importing) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DiagError, match="no log in the folder"):
        imported(empty)
    two = tmp_path / "two"
    two.mkdir()
    for name in "ab":
        (two / f"{name}.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(DiagError, match=r"several logs.*a\.jsonl, b\.jsonl"):
        imported(two)
    (two / "b.jsonl").unlink()
    _, run = imported(two)
    assert value(run, "loss", 1) == 0.5
    with pytest.raises(DiagError, match="already a run folder"):
        imported(run.path)


def test_an_existing_run_is_never_written_over(tmp_path: Path) -> None:
    from dpo_diag.importers import import_path

    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    import_path(tmp_path / "log.jsonl", tmp_path / "run")
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(DiagError, match="already holds a run"):
        import_path(tmp_path / "log.jsonl", tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before


def test_default_out_names_the_log_and_never_an_existing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "my run" / "trainer_state.json.gz"
    assert default_out(source) == Path("runs/imported/my_run_trainer_state")
    default_out(source).mkdir(parents=True)
    assert default_out(source) == Path("runs/imported/my_run_trainer_state-2")
