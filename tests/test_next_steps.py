"""The next command of each command: filled in, quoted for the shell, and one that runs."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dpo_diag import RunWriter, command_lines, load_run, next_steps
from dpo_diag.commands.diag import main
from dpo_diag.commands.hydra_app import SCHEMAS
from dpo_diag.commands.overrides import explain_override, plain_value
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.diagnosis.short import short_lines
from dpo_diag.records.kept_steps import kept_place
from dpo_diag.records.run_info import StoppedBy

REPOSITORY = Path(__file__).resolve().parents[1]
INPUTS = REPOSITORY / "tests" / "golden" / "inputs"
MODELS = {"dpo-score": "score", "dpo-generate": "generate", "dpo-train": "config"}
"""What needs a model is composed only."""


def run(line: str) -> None:
    """Run a printed command; of what needs a model look at its overrides, of what serves a page at its name."""
    name, *arguments = shlex.split(line)
    if name in MODELS:
        assert explain_override(arguments, SCHEMAS[MODELS[name]]) is None
    else:
        assert name == "dpo-diag" and (arguments[0] == "review" or main(arguments) == 0)


def named(text: str) -> list[str]:
    return [
        line.removeprefix("next:").removeprefix("next ").strip() for line in text.splitlines() if line[:4] == "next"
    ]


@pytest.mark.slow
def test_from_the_example_each_command_leads_to_one_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """explain -> outputs -> report -> explain --full or review, in a folder whose name a shell would split."""
    folder = Path(shutil.copytree(REPOSITORY / "runs" / "example", tmp_path / "my run's β"))
    todo, done = [f"dpo-diag explain {shlex.quote(str(folder))}"], []
    while todo:
        line = todo.pop()
        if line in done or shlex.split(line)[1:2] == ["review"]:
            continue
        run(line)
        captured = capsys.readouterr()
        done.append(line)
        told = named(captured.out + captured.err)
        assert told, line
        todo += told
    assert [shlex.split(line)[1] for line in done[:3]] == ["explain", "outputs", "report"]
    assert all(shlex.split(line)[2] == str(folder) for line in done)


def test_a_log_leads_to_its_import_with_what_was_said_and_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(INPUTS / "trl_wrong_reference_trainer_state.json", "my log.json")
    assert main(["explain", "my log.json", "--loss", "sigmoid", "--beta", "0.1", "--json"]) == 0
    following = json.loads(capsys.readouterr().out)["next"]
    assert following == ["dpo-diag import 'my log.json' --loss sigmoid --beta 0.1"]
    run(following[0])
    captured = capsys.readouterr()
    (line,) = named(captured.err)
    assert captured.out.splitlines()[-1] == shlex.split(line)[-1]
    run(line)
    (last,) = named(capsys.readouterr().out)
    assert shlex.split(last)[:2] == ["dpo-diag", "report"]
    run(last)


def test_checkpoints_beside_a_log_are_scored_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log lies beside them, in their parent, or in one of them."""
    output = tmp_path / "my outputs"
    for step in (100, 200):
        (output / f"checkpoint-{step}").mkdir(parents=True)
    log = output / "checkpoint-200" / "trainer_state.json"
    shutil.copy(INPUTS / "trl_wrong_reference_trainer_state.json", log)
    assert main(["explain", str(log)]) == 0
    lines = named(capsys.readouterr().out.replace("\n      dpo-generate", "\nnext dpo-generate"))
    assert [shlex.split(line)[0] for line in lines] == ["dpo-score", "dpo-generate"]
    for line in lines:
        assert plain_value(shlex.split(line)[1]) == str(output / "checkpoint*")
        run(line)
    assert next_steps.checkpoints_beside(output) == str(output / "checkpoint*")
    assert next_steps.checkpoints_beside(tmp_path) is None


@pytest.mark.parametrize(
    "path",
    [
        "plain/run-1", "a b/it's", "läufe/β", "x,y=[1]", "C:\\runs\\new", "end\\'", "null", "True", "1_000", "2026",
        "1.", "-1e5", "+INF", "nan", "a${b}", "${now:%Y}", "C:\\${x}", "'${y}\\\\", "$HOME", "1:2", "1_000/a",
    ],
)  # fmt: skip
def test_an_override_holds_what_it_was_given(path: str) -> None:
    """As the shell, Hydra and OmegaConf read it."""
    (word,) = shlex.split(command_lines.line(command_lines.override("resume", path)))
    assert plain_value(word) == path
    assert OmegaConf.create({"k": OverridesParser.create().parse_override(word).value()}).k == path
    assert explain_override([word], SCHEMAS["config"]) is None


def test_after_an_interrupt_resume_or_read_what_is_there(tmp_path: Path) -> None:
    """Nothing is recorded yet; a run without a checkpoint; one with; one that was trained to its end."""
    assert next_steps.after_interrupt(tmp_path) == []
    writer = RunWriter(tmp_path, kind="trained")
    assert next_steps.after_interrupt(tmp_path) == [f"dpo-diag explain {tmp_path}"]
    (tmp_path / "checkpoints" / "checkpoint-20").mkdir(parents=True)
    assert next_steps.after_interrupt(tmp_path) == [f"dpo-diag explain {tmp_path}"]  # stopped while it was written
    (tmp_path / "checkpoints" / "checkpoint-20" / "trainer_state.json").write_text("{}")
    assert next_steps.after_interrupt(tmp_path) == [f"dpo-train resume={tmp_path}"]
    writer.finish()
    assert next_steps.after_interrupt(tmp_path) == [f"dpo-diag explain {tmp_path}"]


def test_prompts_that_are_messages_are_named_for_chat_models_only(tmp_path: Path) -> None:
    """The shipped prompts need a chat template; where the run's tokenizer has none, one's own stand in capitals."""
    writer = RunWriter(tmp_path, kind="trained")
    for template, prompts in ((True, "general_en"), (False, "PROMPTS.jsonl")):
        writer.update(tokenizer={"chat_template": template})
        (line,) = next_steps.after_play(load_run(tmp_path))
        assert line == f"dpo-generate checkpoints=CHECKPOINTS prompts.path={prompts} out={tmp_path}"
    run(line)


def test_an_offline_tracker_is_sent_first(tmp_path: Path) -> None:
    where = {"kind": "wandb", "mode": "offline", "folder": "wandb/offline-run-1"}
    assert next_steps.after_tracking({"wandb": where}, "my run") == ["wandb sync 'my run/wandb/offline-run-1'"]
    assert next_steps.after_tracking({"wandb": {**where, "mode": "online"}}, "r") == ["dpo-diag report r"]
    resumed = {**where, "folders": ["wandb/offline-run-1", "wandb/offline-run-2"]}
    places = {"tensorboard": {"folder": "tensorboard"}, "wandb": resumed}
    assert next_steps.after_tracking(places, "r") == ["wandb sync r/wandb/offline-run-1 r/wandb/offline-run-2"]
    example = load_run(REPOSITORY / "runs" / "example")
    assert next_steps.after_training(example) == [f"dpo-diag explain {example.path}"]


def test_a_report_that_is_written_is_not_proposed_again(tmp_path: Path) -> None:
    """A run without answers: `report` follows its explanation; where that is done, the answers, if they can be made."""
    writer = RunWriter(tmp_path / "run", kind="trained")
    writer.finish()
    run, document = load_run(tmp_path / "run"), {"verdict": {"harm": "none"}}
    assert next_steps.after_training(run, document) == [f"dpo-diag report {run.path}"]
    assert next_steps.after_training(run, document, reported=True) == [f"dpo-diag explain {run.path} --full"]
    (run.path / "checkpoints" / "checkpoint-20").mkdir(parents=True)
    (asked,) = next_steps.after_training(run, document, reported=True)
    assert asked.startswith("dpo-generate ") and asked.endswith(f"out={run.path}")


def test_what_follows_a_gate_and_a_table() -> None:
    assert next_steps.after_gate("r", False) == ["dpo-diag explain r"]
    assert next_steps.after_gate("r", True) == ["dpo-diag report r"]
    assert next_steps.after_multirun("m/2026") == ["dpo-diag sweep m/2026"]
    assert next_steps.after_sweep(["a b"]) == ["dpo-diag explain 'a b'"] and next_steps.after_sweep([]) == []
    assert next_steps.after_sweep(["a b", "c"], "m") == ["dpo-diag sweep m --resume", "dpo-diag diff c 'a b'"]


def test_what_follows_a_look_at_a_machine_a_model_or_a_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other checkpoint of the training where one lies beside, first for the last and last for the others; the files
    of a command are in the next one, and what it was not given stands in capitals."""
    for step in (20, 100, 60):
        (tmp_path / "my run" / f"checkpoint-{step}").mkdir(parents=True)
    first, last = (str(tmp_path / "my run" / f"checkpoint-{step}") for step in (20, 100))
    text = tmp_path / "long.txt"
    for model, other in ((first, last), (last, first), ("org/model", "OTHER_MODEL")):
        assert next_steps.after_longppl(model, text) == [command_lines.line("dpo-diag", "longppl", other, text)]
    (line,) = next_steps.after_weights(first, last)
    assert shlex.split(line)[1] == f"checkpoints=['{first}','{last}']"
    run(line)
    run(next_steps.after_fetch("smollm2")[0])
    RunWriter(tmp_path / "a run").finish()
    assert next_steps.after_doctor(tmp_path / "a run", True) == [f"dpo-diag explain '{tmp_path}/a run'"]
    assert next_steps.after_doctor(tmp_path / "a run", False) == [f"dpo-diag doctor '{tmp_path}/a run'"]
    # What is no run: runs below it, a log, nothing.
    RunWriter(tmp_path / "root" / "name" / "time").finish()
    assert next_steps.after_doctor(tmp_path / "root" / "name", False) == [f"dpo-diag sweep {tmp_path}/root/name"]
    assert next_steps.after_doctor(tmp_path / "root", False) == [f"dpo-diag sweep '{tmp_path}/root/*'"]
    assert next_steps.after_doctor(tmp_path / "nothing", False) == []
    (tmp_path / "logs").mkdir()
    assert next_steps.after_doctor(tmp_path / "logs", False) == []
    (tmp_path / "logs" / "trainer_state.json").write_text("{}")
    assert next_steps.after_doctor(tmp_path / "logs", False) == [f"dpo-diag import {tmp_path / 'logs'}"]
    monkeypatch.setattr(next_steps, "find_spec", lambda name: None)
    assert next_steps.after_doctor(None, True) == ["dpo-diag explain LOG"]
    example = load_run(REPOSITORY / "runs" / "example")
    assert next_steps.after_play(example) == [f"dpo-diag review {example.path}"]
    for arguments in (["checks"], ["checks", "DVG001"], ["ppl", "2.3"], ["import", "--formats"]):
        assert main(arguments) == 0
        captured = capsys.readouterr()
        (told,) = named(captured.out + captured.err)
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["next"] == [told]


def test_a_run_that_a_guard_ended_says_so_and_names_the_replay(tmp_path: Path) -> None:
    """Three of twelve steps, NaN in the last; the gradient was NaN a step before, and that batch is named."""
    folder = tmp_path / "run"
    writer = RunWriter(folder, kind="trained")
    rates = [{"step": s, "split": "train", "name": "learning_rate", "value": 1e30, "weight": 1.0} for s in (1, 2)]
    losses = [
        {"step": s, "split": "train", "name": "loss", "value": v, "weight": 1.0}
        for s, v in ((1, 0.69), (2, 0.89), (3, math.nan))
    ]
    writer.write("history", [*rates, *losses])
    writer.finish("finished", None, StoppedBy("non_finite_loss", 3, 12))
    for step, code in ((1, "loss_spike"), (2, "non_finite_grad"), (3, "non_finite_loss")):
        place = folder / kept_place(step)
        place.mkdir(parents=True)
        (place / "step.json").write_text(json.dumps({"codes": [code]}), encoding="utf-8")
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    document = explain(folder)
    assert document["verdict"]["text"].count("Stopped by the guard non_finite_loss at step 3 of 12.") == 1
    assert str(short_lines(document)[1]) == "Stopped by the guard non_finite_loss at step 3 of 12."
    tried = next(check["try"] for check in document["checks"] if check["code"] == "DVG011")
    assert tried[0].startswith("lower the learning rate: the numbers were finite before")
    assert tried[-1].endswith("empty or fully masked responses")
    assert next_steps.after_explain(folder, document) == [f"dpo-diag report {folder}"]  # a script's: no dpo-train
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    config_name: config\n", encoding="utf-8")
    (folder / ".hydra" / "overrides.yaml").write_text("[]\n", encoding="utf-8")
    replay = f"dpo-train replay={folder / kept_place(2)}"
    assert next_steps.after_explain(folder, document) == [replay]
    resumed = RunWriter(folder, kind="trained", resume_step=2)
    assert resumed.info.stopped_by is None
    resumed.finish()
    assert "stopped_by" not in explain(folder)
