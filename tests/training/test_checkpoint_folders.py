"""A checkpoint that a training goes on from is whole, or says which file is not; what is written is whole when it is
there; old ones go by step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, TrainerCallback

from dpo_diag import load_run
from dpo_diag.diagnosis.keep import keep
from dpo_diag.errors import DiagError
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.checkpoint_folders import (
    ASIDE,
    PASSED_OVER,
    REPLACED,
    Resumed,
    at_checkpoint,
    checkpoints_in,
    choose_checkpoint,
    clear_leftovers,
    put_in_place,
    superfluous,
)
from dpo_diag.training.guards import Guards
from dpo_diag.training.saving import Keep
from dpo_diag.training.whole_checkpoint import MANIFEST, seal

from .tiny import arguments, make_model, make_pairs


def trainer_of(
    folder: Path, tokenizer: PreTrainedTokenizerFast, held_out: list[dict[str, str]] | None = None, **options: Any
) -> DiagDPOTrainer:
    known: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear"}
    return DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=folder / "run",
        args=arguments(folder / "out", **known | options), train_dataset=Dataset.from_list(make_pairs(11)),
        eval_dataset=Dataset.from_list(held_out or make_pairs(4, seed=1)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Three steps, a checkpoint at each: the folder of `out` and `run`, not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    trainer_of(folder, tokenizer).train()
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def flip(path: Path) -> None:
    """The lowest bit of the byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def not_finite(path: Path) -> None:
    """One weight is infinite, and the manifest knows it: the training itself went there."""
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] = torch.inf
    save_file(weights, path, metadata={"format": "pt"})
    seal(path.parent)


def of_step_2(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": 2}))


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut": ("model.safetensors", cut, "a file of the checkpoint is cut"),
    "a bit of a weight": ("model.safetensors", flip, "a file of the checkpoint is damaged"),
    "a bit of the optimizer": ("optimizer.pt", flip, "a file of the checkpoint is damaged"),
    "no optimizer": ("optimizer.pt", Path.unlink, "a file of the checkpoint is missing"),
    "no random state": ("rng_state.pth", Path.unlink, "a file of the checkpoint is missing"),
    "no schedule": ("scheduler.pt", Path.unlink, "a file of the checkpoint is missing"),
    "no window": ("dpo_diag_window.r0.npz", Path.unlink, "a file of the checkpoint is missing"),
    "another step": ("trainer_state.json", of_step_2, "the checkpoint's state is of another step"),
    "no state": ("trainer_state.json", Path.unlink, "the checkpoint was not written to its end"),
    "not finite": ("model.safetensors", not_finite, "a weight is not finite"),
    "no manifest's text": (MANIFEST, cut, f"{MANIFEST} cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(copy: Path, fault: str) -> None:
    """The last one is damaged: the one before is taken, with the reason; asked for by its step it is refused."""
    name, damage, said = FAULTS[fault]
    damage(copy / "out" / "checkpoint-3" / name)
    found = choose_checkpoint(copy / "out")
    assert (found.step, found.folder) == (2, str(copy / "out" / "checkpoint-2"))
    assert found.passed_over == (f"checkpoint-3 ({said}: {name})",)
    assert found.line() == f"goes on from step 2, {copy}/out/checkpoint-2; passed over checkpoint-3 ({said}: {name})"
    with pytest.raises(DiagError) as refused:
        choose_checkpoint(copy / "out", 3)
    assert str(refused.value).startswith(f"{said}; in {copy / 'out' / 'checkpoint-3' / name}")
    assert "checkpoint=N" in str(refused.value)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_of_another_writer_is_read(copy: Path, name: str) -> None:
    """Without a manifest the files speak for themselves: whole; one of them absent; half of one."""
    checkpoint = copy / "out" / "checkpoint-3"
    (checkpoint / MANIFEST).unlink()
    assert at_checkpoint(checkpoint).step == 3
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    with pytest.raises(DiagError, match=rf"is missing; in .*checkpoint-3; expected {name}"):
        at_checkpoint(checkpoint)
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DiagError, match=rf"cannot be read; in .*{name}"):
        at_checkpoint(checkpoint)


def test_a_checkpoint_of_torchs_old_form_says_how_it_is_written_anew(copy: Path) -> None:
    checkpoint = copy / "out" / "checkpoint-3"
    (checkpoint / MANIFEST).unlink()
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.save(state, checkpoint / "optimizer.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(
        DiagError, match=r"got torch's form of before 1.6; .*hint: torch.save\(torch.load\(FILE"
    ) as refused:
        at_checkpoint(checkpoint)
    assert "fresh_optimizer=true" in str(refused.value)
    torch.save(state, checkpoint / "optimizer.pt")
    assert at_checkpoint(checkpoint).step == 3


@pytest.mark.parametrize("killed_at", ["the old one is aside", "the new one is in place"])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """And what is left is found by whoever goes on, even before the leftovers are cleared."""
    folder, aside = tmp_path / "checkpoint-2", tmp_path / ASIDE / "checkpoint-2"
    for path, text in ((folder, "old"), (aside, "new")):
        path.mkdir(parents=True)
        (path / "weights").write_text(text)
    rename, done = Path.rename, []

    def killed(self: Path, target: Any) -> Any:
        if len(done) == ["the old one is aside", "the new one is in place"].index(killed_at) + 1:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        put_in_place(aside, folder)
        killed(aside, folder)  # behind the second one
    assert (folder / "weights").exists() == (killed_at == "the new one is in place")
    with pytest.raises(DiagError, match="nothing to resume from"):  # of these no training goes on
        choose_checkpoint(tmp_path)
    assert (folder / "weights").read_text() == ("old" if killed_at == "the old one is aside" else "new")
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_whole_checkpoint_under_another_name_is_taken(copy: Path) -> None:
    (copy / "out" / "checkpoint-3").rename(copy / "mine")
    assert at_checkpoint(copy / "mine").step == 3


def test_a_mask_of_minus_infinity_and_an_edited_model_card_are_no_damage(copy: Path) -> None:
    last = max((copy / "out").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    weights = load_file(last / "model.safetensors")
    save_file({**weights, "mask": torch.tensor([0.0, float("-inf")])}, last / "model.safetensors", {"format": "pt"})
    (last / "README.md").write_text("base_model: x")
    seal(last)
    (last / "README.md").write_text("base_model: x, and what it is for")
    assert choose_checkpoint(copy / "out").folder == str(last)


def test_where_there_is_none_the_error_says_why(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DiagError, match=r"nothing to resume from; in .*absent; got no checkpoint"):
        choose_checkpoint(tmp_path / "absent")
    with pytest.raises(DiagError, match=r"no checkpoint of step 7; in .*; got steps 1, 2, 3"):
        choose_checkpoint(copy / "out", 7)
    for path in checkpoints_in(copy / "out").values():
        (path / "optimizer.pt").unlink()
    with pytest.raises(DiagError, match=r"got checkpoint-3 \(a file of the checkpoint is missing: optimizer.pt\); ch"):
        choose_checkpoint(copy / "out")
    # The weights are whole: who wants them without their optimizer says so.
    assert choose_checkpoint(copy / "out", fresh_optimizer=True).step == 3


def test_an_optimizer_that_begins_anew_has_the_steps_learning_rate(
    copy: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Linear from 1e-3 to 0 over 3 steps: the third step has a third of it, with its optimizer or without."""
    (copy / "out" / "checkpoint-2" / "optimizer.pt").unlink()
    trainer = trainer_of(copy, tokenizer)
    with pytest.raises(DiagError, match="fresh_optimizer=true"):
        trainer.train(resume_from_checkpoint=str(copy / "out" / "checkpoint-2"))
    trainer.fresh_optimizer = True
    trainer.train(resume_from_checkpoint=str(copy / "out" / "checkpoint-2"))
    row = next(r for r in trainer.state.log_history if r["step"] == 3 and "learning_rate" in r)
    assert row["learning_rate"] == pytest.approx(1e-3 / 3)


def test_what_lies_beyond_the_chosen_step_is_set_aside(copy: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """From step 1 on: checkpoints 2 and 3 belong to rows that go. A kill before the next one goes on from 1 again."""
    trainer, told = trainer_of(copy, tokenizer, max_steps=2, save_steps=5), []
    trainer.tell = told.append
    trainer.train(resume_from_checkpoint=str(copy / "out" / "checkpoint-1"))
    assert told == [f"checkpoint-2, checkpoint-3: beyond step 1, moved to {copy / 'out' / PASSED_OVER}"]
    assert sorted(p.name for p in (copy / "out" / PASSED_OVER).iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert [*checkpoints_in(copy / "out")] == [1, 2]
    assert set(load_run(copy / "run").history.query("name == 'loss'")["step"]) == {1, 2}


@pytest.mark.parametrize("evaluated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_at_the_last_step_only_the_closing_work_is_done(
    copy: Path, tokenizer: PreTrainedTokenizerFast, evaluated: bool
) -> None:
    """From checkpoint 3 of 3, whose epoch has four steps: no fourth; the evaluation that is due once at the end."""
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2} if evaluated else {}
    trainer = trainer_of(copy, tokenizer, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert [*checkpoints_in(copy / "out")] == [1, 2, 3]
    run = load_run(copy / "run")
    rows = run.history
    assert run.meta["status"] == "finished"
    assert rows.query("split == 'train' and name == 'loss'")["step"].tolist() == [1, 2, 3]
    assert rows.query("split == 'eval' and name == 'loss'")["step"].tolist() == ([3] if evaluated else [])
    assert (rows.query("name == 'train_loss'")["step"] == 3).all()


@pytest.mark.parametrize("evaluated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_behind_the_last_checkpoint_it_closes_as_if_nobody_had_killed_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, evaluated: bool
) -> None:
    """One step, inside a logging window of two. TRL's closing log call has num_tokens where the model is in training
    mode: not behind an evaluation. A process that only closes has done neither: a LoRA begins in training mode, a
    loaded model out of it."""
    options: dict[str, Any] = {"max_steps": 1, "logging_steps": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 1} if evaluated else {}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    class Copy(TrainerCallback):
        def on_save(self, *args: Any, **kwargs: Any) -> None:
            shutil.copytree(whole, killed)

    trainer = trainer_of(whole, tokenizer, **options)
    trainer.add_callback(Copy())
    trainer.train()
    resumed = trainer_of(killed, tokenizer, **options)
    resumed.model.train(evaluated)
    resumed.train(resume_from_checkpoint=True)
    history, expected = (load_run(folder / "run").history for folder in (killed, whole))
    names, known = (set(h.query("split == 'train'")["name"]) for h in (history, expected))
    assert names == known
    assert "train_loss" in known
    assert ("num_tokens" in known) is not evaluated
    assert resumed.model.training is trainer.model.training is not evaluated


def test_a_write_that_fails_leaves_no_checkpoint_behind(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full inside the second checkpoint: the first stays, nothing else does, and it is gone on from."""
    trainer, save = trainer_of(tmp_path, tokenizer, max_steps=2), torch.save

    def full(thing: Any, path: Any, *args: Any) -> None:
        save(thing, path, *args)
        if "checkpoint-2" in str(path):
            cut(Path(path))
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [ASIDE, "checkpoint-1"]
    assert not any((tmp_path / "out" / ASIDE).iterdir())
    assert choose_checkpoint(tmp_path / "out").passed_over == ()


def test_old_ones_go_by_step_and_never_the_best(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Two of four stay. The first is the best; each file of the later ones is from 1970, as after a clock that jumped:
    by the files' times the newest would go."""
    trainer = trainer_of(tmp_path, tokenizer, max_steps=4, save_total_limit=2)

    class Clock(type(trainer.callback_handler.callbacks[0])):  # any callback
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            newest = tmp_path / "out" / f"checkpoint-{state.global_step}"
            if state.global_step == 1:
                state.best_model_checkpoint = str(newest)
            else:
                os.utime(newest, (0, 0))

    trainer.add_callback(Clock())
    trainer.train()
    assert [*checkpoints_in(tmp_path / "out")] == [1, 4]
    assert choose_checkpoint(tmp_path / "out").step == 4


@pytest.mark.parametrize(
    ("metric", "rate", "own", "stay"), [("ce/chosen", 3e-2, False, [2, 8]), ("rewards/margins", 1e-2, True, [8])]
)
def test_the_one_that_keep_would_choose_stays(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, metric: str, rate: float, own: bool, stay: list[int]
) -> None:
    """One of four is to stay. Chosen's cross-entropy on other pairs rises from the start at this rate, so that step 2
    is the best that is on disk; the margin on the pairs that are trained on grows, so that the last one is, and nothing
    else stays."""
    trainer = trainer_of(
        tmp_path, tokenizer, make_pairs(11) if own else None, max_steps=8, save_steps=2, save_total_limit=1,
        eval_strategy="steps", eval_steps=2, learning_rate=rate, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.keep = Keep(best=True, metric=metric)
    trainer.train()
    assert [*checkpoints_in(tmp_path / "out")] == stay
    (tmp_path / "out").rename(tmp_path / "run" / "checkpoints")
    assert keep(load_run(tmp_path / "run"), metric)["keep"] == stay[0]


def test_who_only_looks_leaves_a_checkpoint_that_is_being_replaced_where_it_lies(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A training between the two renames of `put_in_place`, while a replay looks for weights: it takes what is being
    replaced from where it lies, and the training's rename finds its name free. Who goes on from it gives it back."""
    trainer_of(tmp_path, tokenizer, max_steps=2).train()
    out = tmp_path / "out"
    aside = out / ASIDE / f"{REPLACED}checkpoint-2"
    aside.parent.mkdir(exist_ok=True)
    (out / "checkpoint-2").rename(aside)
    assert choose_checkpoint(out, before=5, only_look=True) == Resumed(str(aside), 2)
    assert aside.is_dir() and not (out / "checkpoint-2").exists()
    assert choose_checkpoint(out, before=5).folder == str(out / "checkpoint-2")
    assert not aside.exists()


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"limit": 2, "every": 2, "by_clock": False, "protected": [8]}, [2, 4]),
        ({"limit": 2, "every": 2, "by_clock": False, "protected": [2, 8]}, [4, 6]),
        ({"limit": 1, "every": 2, "by_clock": False, "protected": [4, 8]}, [2, 6]),
        ({"limit": None, "every": 2, "by_clock": False, "protected": [8]}, []),
        ({"limit": None, "every": 4, "by_clock": True, "protected": [8]}, []),  # 2 and 6 are the clock's
        ({"limit": None, "every": None, "by_clock": True, "protected": [8]}, [2, 4]),
        ({"limit": None, "every": None, "by_clock": True, "protected": [2, 8]}, [4, 6]),
    ],
)
def test_which_go(options: dict[str, Any], gone: list[int]) -> None:
    assert superfluous([8, 2, 6, 4], **options) == gone


def test_the_clock_asks_for_a_checkpoint_and_what_is_saved_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nothing is asked for by steps: a clock that is always due saves each step, of which two stay."""
    trainer = trainer_of(tmp_path, tokenizer, save_strategy="no")
    # 17,000 parameters of 4 bytes, and two moments of each.
    size = f"up to {3 * 4 * trainer.model.num_parameters() / 1000:.0f} kB each"
    none = "keeps no model: trainer.save_at_end=true, trainer.save_minutes=30 or trainer.save_steps=N would"
    for saving, said in (
        (Keep(), none),
        (Keep(None, True), f"saves at the end: all stay, {size}"),
        (Keep(30.0, True), f"saves every 30 minutes and at the end: the last 2 stay, {size}"),
        (
            Keep(30.0, best=True),
            f"saves every 30 minutes: 2 stay, the last and the best measured one among them, {size}",
        ),
        (Keep(1e-9), f"saves every 1e-09 minutes: the last 2 stay, {size}"),
    ):
        trainer.keep = saving
        assert trainer.saves() == said
    trainer.train()
    assert [*checkpoints_in(tmp_path / "out")] == [2, 3]


def test_guards_go_on_with_what_they_knew() -> None:
    """Sixteen losses of 1 before the checkpoint, then 9: a spike, as if nothing had stopped; without them silence."""
    said: list[str] = []
    first, second, third = (Guards(lambda code, *_: said.append(code)) for _ in range(3))
    for step in range(1, 25):
        first.logged(1.0, step)
    second.recall(first.memory())
    third.recall({})
    for guards in (second, third):
        guards.logged(9.0, 25)
        guards.end()
    assert said == ["loss_spike"]
