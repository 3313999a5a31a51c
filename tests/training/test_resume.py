"""A run that is really killed, and resumed from its last checkpoint, is the run that was never interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_stopped_script
from dpo_diag.records import RunWriter
from dpo_diag.training import DiagDPOTrainer

from .tiny import arguments, make_model, make_pairs

OF_A_PROCESS = "runtime|per_second"
"""Names whose values count from the start of the process."""

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from datasets import Dataset
from transformers import TrainerCallback
from dpo_diag.training import DiagDPOTrainer, recorder
from training.tiny import arguments, make_model, make_pairs, make_tokenizer

recorder.FLUSH_SECONDS = {seconds}

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = DiagDPOTrainer(
    model=make_model(1), ref_model=make_model(2), processing_class=make_tokenizer(), recorder={run!r},
    args=arguments({out!r}, max_steps=9, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=2),
    train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(4, seed=1)),
    callbacks=[Kill()],
)
trainer.train()
"""


def trainer_of(folder: Path, run: Path, tokenizer: PreTrainedTokenizerFast) -> DiagDPOTrainer:
    return DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=run,
        args=arguments(folder, max_steps=9, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=2),
        train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(4, seed=1)),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "written"), [(0.0, 7), (3600.0, 6)])
def test_killed_and_resumed(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    seconds: float,
    written: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL in step 8, checkpoints at 2, 4 and 6: rows of step 7 are on disk, are removed and written anew; or they
    wait for their file when the run is killed."""
    out, run = tmp_path / "out", tmp_path / "run"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), run=str(run), out=str(out), seconds=seconds))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    half = load_run(run)
    assert half.meta["status"] == "running"
    assert set(half.pairs.loc[half.pairs["split"] == "train", "step"]) == {*range(1, written + 1)}

    resumed = trainer_of(out, run, tokenizer)
    resumed.train(resume_from_checkpoint=True)
    assert capsys.readouterr().err.splitlines()[-1] == f"next: dpo-diag explain {run}"
    whole = trainer_of(tmp_path / "out2", tmp_path / "run2", tokenizer)
    whole.train()
    a, b = load_run(run), load_run(tmp_path / "run2")
    assert a.meta["status"] == "finished"
    for table in ("pairs", "tokens", "history"):
        key = [c for c in ("step", "split", "role", "pair_id", "side", "position", "name") if c in a.read(table)]
        rows, expected = a.read(table), b.read(table)
        rows, expected = (
            f[~f.get("name", f["split"]).astype(str).str.contains(OF_A_PROCESS)] for f in (rows, expected)
        )
        assert not rows.duplicated(key).any(), table
        merged = rows.merge(expected, on=key, how="outer", indicator=True)
        assert (merged["_merge"] == "both").all(), (table, merged[merged["_merge"] != "both"].head())
        for value in ("sum_logp", "logp", "value"):
            if value in rows:
                assert (merged[f"{value}_x"] - merged[f"{value}_y"]).abs().max() < 1e-6
    assert len(a.texts) == len(b.texts)
    assert not a.read("texts").duplicated(["split", "pair_id"]).any()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    first = trainer_of(tmp_path / "out", tmp_path / "run", tokenizer)
    first.args.max_steps = 1
    first.train()
    with pytest.raises(DiagError, match="already holds a run"):
        trainer_of(tmp_path / "out2", tmp_path / "run", tokenizer).train()


def test_a_second_training_starts_over(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """train() twice, the second shorter: the run holds the second alone, references and texts included."""
    trainer = trainer_of(tmp_path / "out", tmp_path / "run", tokenizer)
    trainer.args.max_steps = 5
    trainer.train()
    trainer.args.max_steps = 2
    trainer.train()
    run = load_run(tmp_path / "run")
    rows = run.read("pairs")
    assert set(rows.loc[rows["split"] == "train", "step"]) == {1, 2}
    assert set(rows.loc[rows["split"] == "eval", "step"]) == {0, 2}
    assert not rows.duplicated(["step", "split", "role", "pair_id", "side"]).any()
    assert run.pairs["ref_sum_logp"].notna().all()
    assert set(run.history["step"]) == {0, 1, 2}


def test_a_writer_at_another_step_than_the_checkpoint_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = trainer_of(tmp_path / "out", tmp_path / "run", tokenizer)
    first.args.max_steps = 3
    first.train()
    writer = RunWriter(tmp_path / "run", resume_step=1)
    second = trainer_of(tmp_path / "out", tmp_path / "run", tokenizer)
    second = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=writer,
        args=arguments(tmp_path / "out", max_steps=4), train_dataset=Dataset.from_list(make_pairs(11)),
    )  # fmt: skip
    with pytest.raises(DiagError, match=r"resumes at step 1.*checkpoint-2"):
        second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_a_failure_is_written_down(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for error, status in ((RuntimeError("no"), "failed"), (KeyboardInterrupt(), "interrupted")):
        trainer = trainer_of(tmp_path / status, tmp_path / f"run-{status}", tokenizer)
        original = trainer.training_step

        def step(*args: object, trainer: DiagDPOTrainer = trainer, original=original, error=error, **kwargs: object):
            if trainer.state.global_step == 1:
                raise error
            return original(*args, **kwargs)

        trainer.training_step = step
        with pytest.raises(type(error)):
            trainer.train()
        run = load_run(tmp_path / f"run-{status}")
        assert run.meta["status"] == status
        assert set(run.pairs.loc[run.pairs["split"] == "train", "step"]) == {1}  # what was measured is kept
        said = [f"next: dpo-diag explain {run.path}"] if status == "interrupted" else []
        assert getattr(error, "__notes__", []) == said  # printed behind the traceback; no checkpoint to go on from


def test_a_stopped_script_goes_on_from_its_whole_checkpoint() -> None:
    explain = "dpo-diag explain runs/x"
    assert after_stopped_script("runs/x", None) == [explain]
    resume = "trainer.train(resume_from_checkpoint='out/checkpoint-20')"
    assert after_stopped_script("runs/x", "out/checkpoint-20") == [resume, explain]
