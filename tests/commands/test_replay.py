"""dpo-train replay=: a step that a guard kept, computed again from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.train import job
from dpo_diag.records import load_run

SMALL = [
    "trainer.batch_size=4", "trainer.max_length=64", "data.eval_share=0.3", "data.max_bad_share=0.1", "prompts=none",
    "model.device=cpu", "explain=false", "trainer.save_steps=2", "trainer.max_steps=5", "loss.beta=0.1",
]  # fmt: skip


def trained(tiny_folder: Path, pair_file: Path, folder: Path, capfd: pytest.CaptureFixture[str], *more: str) -> Path:
    own = ["model=hub", f"model.name={tiny_folder}", "data=jsonl", f"data.path={pair_file}"]
    assert run_app("dpo-train", "config", job, [*own, f"output_root={folder}", *SMALL, *more]) == 0
    return Path(capfd.readouterr().out.splitlines()[-1])


def replayed(place: str, capfd: pytest.CaptureFixture[str]) -> list[str]:
    assert run_app("dpo-train", "config", job, [f"replay={place}"]) == 0
    return capfd.readouterr().out.splitlines()


MOVED = ["schedule=linear", "schedule.of=beta", "schedule.end=1.0"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], MOVED, ["trainer.logits_sam=0.5"]], ids=["plain", "moved", "sam"])
def test_a_spike_is_computed_again_to_the_last_digit(
    tiny_folder: Path, pair_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """Bounds at which every step from the third on is a spike: the batch of step 4 with the weights that it had; then
    without them, from checkpoint-2, one update before it; the run's records stay as they were."""
    low = [f"checks.guards.{name}" for name in ("spike_min=-9", "spike_mads=-1000", "spike_least_steps=2")]
    run = trained(tiny_folder, pair_file, tmp_path, capfd, *low, "trainer.learning_rate=1e-3", *more)
    alerts = load_run(run).alerts.query("code == 'loss_spike'").set_index("step")
    evidence = json.loads(alerts.loc[4, "evidence"])
    files = sorted(path.relative_to(run) for path in run.rglob("*"))
    lines = replayed(evidence["replay"], capfd)
    assert lines[0] == "step 4 (loss_spike, grad_spike), 4 rows" or lines[0] == "step 4 (loss_spike), 4 rows"
    assert lines[1] == "weights: those of the step, kept beside the batch"
    loss, recorded = lines[2].removeprefix("loss ").split(", recorded ")
    assert loss == recorded == f"{evidence['loss']:.6g}"
    assert {line.split()[0] for line in lines[4:-4]} >= set(evidence["pair_ids"])
    assert lines[-4:-1] == [
        "parameters that are not finite: none",
        "modules whose output is not finite, first to last: none",
        "gradients that are not finite, in the order of the backward pass: none",
    ]
    assert lines[-1] == str(run)
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == files
    facts = Path(evidence["replay"]) / "step.json"
    facts.write_text(facts.read_text().replace('"has_weights": true', '"has_weights": false'))
    lines = replayed(evidence["replay"], capfd)
    assert lines[1] == "weights: those of checkpoint-2, 1 update before the batch: the numbers are others"
    assert lines[2].removeprefix("loss ").split(", recorded ")[0] != recorded
    shutil.rmtree(run / "checkpoints")
    assert replayed(evidence["replay"], capfd)[1].startswith("weights: those before training, 3 updates before")


@pytest.mark.slow
def test_what_was_not_finite_first_is_named(
    tiny_folder: Path, pair_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A learning rate of 1e30: at the second step loss and log-probs are finite still, the gradient is not."""
    run = trained(
        tiny_folder, pair_file, tmp_path, capfd, "trainer.learning_rate=1e30", "guards.actions={non_finite_grad: stop}"
    )
    alert = load_run(run).alerts.iloc[0]
    assert (alert["code"], alert["step"]) == ("non_finite_grad", 2)
    lines = replayed(json.loads(alert["evidence"])["replay"], capfd)
    assert lines[1] == "weights: those of the step, kept beside the batch"
    loss, recorded = lines[2].removeprefix("loss ").split(", recorded ")
    assert loss == recorded
    assert lines[-2].startswith("gradients that are not finite, in the order of the backward pass: ")
    assert not lines[-2].endswith("none")


def test_what_is_no_kept_step_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app("dpo-train", "config", job, [f"replay={tmp_path / 'alerts' / 'step-00000001'}"]) == 2
    said = capfd.readouterr().err
    assert f"nothing to replay; in {tmp_path / 'alerts' / 'step-00000001'}; got nothing there" in said
