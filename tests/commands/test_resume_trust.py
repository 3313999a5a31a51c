"""resume= of a folder that somebody else wrote takes nothing that runs code, sends records or writes elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.resume_trust import SIGNATURE, is_own, not_taken
from dpo_diag.commands.resume_trust import resumed as arguments_resumed
from dpo_diag.records.checksums import yaml_bytes

HARMLESS = ["seed=3", "loss.beta=0.3", "name='vergleich β'", "data.path='a, b.jsonl'", "~probes",
            "+trainer.args.adam_beta2=0.9", "trainer.max_steps=4", "data.path=../pairs.jsonl", "loss=ipo",
            "model.attn_implementation=eager"]  # fmt: skip
HARMFUL = [
    "model.trust_remote_code=true", "++model.allow_pickle=true", "tracking=wandb", "tracking.entity=them",
    "output_root=/tmp/theirs", "task.cache=/tmp/theirs", "hydra.run.dir=/tmp/theirs", "hydra/launcher=joblib",
    "+hydra.callbacks.x._target_=os.system", "trainer.args.push_to_hub=true", "+trainer.args.hub_model_id=them",
    "+trainer.args.output_dir=/tmp/theirs", "+trainer.args.deepspeed=theirs.json", "model={trust_remote_code:true}",
    "model.name=${oc.env:SECRET}", "--config-dir=/tmp/theirs", "trainer.args={a:b}",
    "+remedy=[../../../../../proc/self/cwd/theirs]", "+prompts@_global_=../../theirs", "out=/tmp/theirs",
    "trainer.reference_store=/tmp/theirs", "launcher=ray", "ray_address=theirs",
    "model.attn_implementation=them/kernel",
]  # fmt: skip


def of_a_run(folder: Path, overrides: list[str]) -> None:
    (folder / ".hydra").mkdir(parents=True)
    lines = "".join(f"- {text!r}\n" if "'" not in text else f'- "{text}"\n' for text in overrides)
    (folder / ".hydra" / "overrides.yaml").write_text(lines, encoding="utf-8")


def resumed(*arguments: str) -> Any:
    seen: list[Any] = []

    def job(cfg: Any) -> None:
        seen.append((cfg, HydraConfig.get().runtime.output_dir))

    assert run_app("dpo-train", "config", job, list(arguments)) == 0
    return seen[0]


def test_each_that_leads_elsewhere_is_known_and_no_other() -> None:
    assert not_taken([*HARMLESS, *HARMFUL]) == HARMFUL


def test_a_strangers_folder_is_resumed_without_them_and_says_how_to_give_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed is taken, code and trackers are not; the line that it prints, run as it stands, takes them."""
    run = tmp_path / "their run"
    theirs = ["model.trust_remote_code=true", "tracking.entity=them", f"output_root={tmp_path / 'elsewhere'}"]
    of_a_run(run, ["seed=3", *theirs, "+hydra.callbacks.x._target_=os.abort"])
    config, place = resumed(f"resume={run}")
    assert (config.seed, config.model.trust_remote_code, config.tracking.entity) == (3, False, None)
    assert place == str(run) and not (tmp_path / "elsewhere").exists()
    (note,) = capsys.readouterr().err.splitlines()
    said = f"note: {run} is not signed as yours: not taken from it: {' '.join(theirs)} +hydra.callbacks"
    assert note.startswith(said)
    program, *again = shlex.split(note.partition("if you trust them: ")[2])
    assert program == "dpo-train" and set(theirs) < set(again)
    config, _ = resumed(*[a for a in again if "hydra" not in a])
    assert (config.seed, config.model.trust_remote_code, config.tracking.entity) == (3, True, "them")


def test_without_what_decides_its_training_an_unsigned_run_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of an earlier version, or of another home, has no signature: its optimizer is not left out in passing."""
    run = tmp_path / "older"
    of_a_run(run, ["seed=3", "+trainer.args.optim=adafactor", "tracking.entity=us"])
    assert run_app("dpo-train", "config", lambda cfg: None, [f"resume={run}"]) == 2
    said = capsys.readouterr().err
    assert "another training" in said and "got +trainer.args.optim=adafactor; hint" in said
    config, _ = resumed(f"resume={run}", "+trainer.args.optim=adafactor")
    assert (config.seed, config.trainer.args.optim) == (3, "adafactor")


def test_a_run_of_ones_own_brings_all_back_until_somebody_changes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "mine"
    resumed(f"hydra.run.dir={run}", "seed=5", "model.trust_remote_code=true", "tracking.entity=us")
    assert is_own(run)
    config, _ = resumed(f"resume={run}", "seed=6")
    assert (config.seed, config.model.trust_remote_code, config.tracking.entity) == (6, True, "us")
    assert capsys.readouterr().err == ""
    saved = run / ".hydra" / "overrides.yaml"
    saved.write_bytes(yaml_bytes(saved.read_text().replace("=us", "=them")))  # whole by its checksum
    assert not is_own(run)
    assert resumed(f"resume={run}")[0].tracking.entity is None
    (run / SIGNATURE).unlink()
    assert not is_own(run)


def test_a_configuration_that_was_edited_is_said_not_to_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Hydra composed is written for people to read; whoever changes it there is told where changes go."""
    run = tmp_path / "r"
    of_a_run(run, ["seed=3"])
    file = run / ".hydra" / "config.yaml"
    file.write_bytes(yaml_bytes("seed: 3\n"))
    arguments_resumed([f"resume={run}"])
    assert capsys.readouterr().err == ""
    file.write_bytes(file.read_bytes().replace(b"seed: 3", b"seed: 1"))
    assert "seed=3" in arguments_resumed([f"resume={run}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {file} was changed, and is not read") and line.endswith("on the command line")


def test_links_that_lead_out_of_a_strangers_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra opens .hydra/config.yaml and writes into what it finds. A link inside the folder leads nowhere."""
    run, shell = tmp_path / "theirs", tmp_path / ".bashrc"
    of_a_run(run, ["seed=3"])
    (run / "latest").symlink_to(run / ".hydra")
    assert arguments_resumed([f"resume={run}"])[0] == "seed=3"
    shell.write_text("mine")
    (run / ".hydra" / "config.yaml").symlink_to(shell)
    assert run_app("dpo-train", "config", lambda cfg: None, [f"resume={run}"]) == 2
    said = capsys.readouterr().err
    assert shell.read_text() == "mine" and f"got {run / '.hydra' / 'config.yaml'} -> {shell}; hint" in said
