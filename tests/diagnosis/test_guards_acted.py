"""What live guards did to a training is among the first lines of its explanation."""

from __future__ import annotations

import json
from pathlib import Path

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.diagnosis.guards_acted import guards_acted
from dpo_diag.translated import catalogue


def run_with(folder: Path, *alerts: tuple[int, str, str | dict[str, object] | None]) -> Path:
    """(step, code, action or all of its evidence; None: a warning) of each alert."""
    writer = RunWriter(folder)
    history = [{"step": s, "split": "train", "name": "loss", "value": 0.6, "weight": 8} for s in (1, 2)]
    writer.write("history", history, "train")
    for step, code, action in alerts:
        more = action if isinstance(action, dict) else {} if action is None else {"action": action}
        evidence = {"step": step, **more}
        row = {"step": step, "code": code, "message": "m", "evidence": json.dumps(evidence)}
        writer.write("alerts", [row], f"{code}-rank0")
    writer.finish()
    return folder


def test_each_action_is_told_once_and_a_warning_not_at_all(tmp_path: Path) -> None:
    steps = [(step, "non_finite_loss", "skip") for step in (5, 6, 7, 8, 9)]
    run = run_with(
        tmp_path / "run", (4, "loss_spike", None), *steps, (7, "grad_spike", "skip"), (12, "displacement", "scale_lr"),
        (20, "loss_spike", "restore"), (20, "restored", {"because": "loss_spike", "from_step": 16}),
        (30, "dead_gradients", "stop"),
    )  # fmt: skip
    said = [
        "Guards left out the update of steps 5, 6, 7, 8 and 1 more (non_finite_loss, grad_spike).",
        "Guards took back a checkpoint after step 20 (loss_spike).",
        "Guards scaled the learning rate from step 12 on (displacement).",
    ]
    assert guards_acted(load_run(run)) == said
    document = explain(run)
    assert document["guards_acted"] == said and said[0] in document["verdict"]["text"]
    zh = catalogue("zh")
    assert all(zh.has(text) for text in said)
    assert zh(said[1]) == "守卫在第 20 步之后恢复了 checkpoint（loss_spike）。"


def test_warnings_alone_and_no_alert_say_nothing(tmp_path: Path) -> None:
    for name, alerts in (("a", [(4, "loss_spike", None)]), ("b", [])):
        run = run_with(tmp_path / name, *alerts)
        assert guards_acted(load_run(run)) == [] and "guards_acted" not in explain(run)


def test_a_restore_that_was_not_made_is_none_and_what_is_no_longer_said_is_allowed_for(tmp_path: Path) -> None:
    """There was no checkpoint to take back after step 3; after step 9 the run ended in its place. Alerts of a code end
    at a number of them: how many updates were left out after it is not known."""
    run = run_with(
        tmp_path / "run", (3, "loss_spike", "restore"), (3, "restored", {"because": "loss_spike"}),
        (5, "non_finite_loss", {"action": "skip"}), (6, "non_finite_loss", {"action": "skip", "last_said": True}),
        (9, "loss_spike", "restore"), (9, "guards_gave_up", "stop"),
    )  # fmt: skip
    assert guards_acted(load_run(run)) == ["Guards left out the update of steps 5, 6 at least (non_finite_loss)."]
    one = run_with(tmp_path / "one", (5, "grad_spike", {"action": "scale_lr", "last_said": True}))
    said = ["Guards scaled the learning rate from steps 5 at least on (grad_spike)."]
    assert guards_acted(load_run(one)) == said and catalogue("zh").has(said[0])


def test_evidence_that_somebody_edited_says_nothing(tmp_path: Path) -> None:
    """A list, a text that is cut, and a restore without its reason, beside one whole row."""
    writer = RunWriter(tmp_path / "run")
    whole = '{"step": 4, "action": "skip"}'
    for i, evidence in enumerate(["[]", '{"action": "sk', '{"from_step": 2}', whole]):
        code = "restored" if "from_step" in evidence else "loss_spike"
        writer.write("alerts", [{"step": i, "code": code, "message": "m", "evidence": evidence}], f"part{i}-rank0")
    writer.finish()
    assert guards_acted(load_run(tmp_path / "run")) == ["Guards left out the update of step 3 (loss_spike)."]
