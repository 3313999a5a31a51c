"""`python -m tests.faults.killed_trainings FOLDER KIND`: trainings of one kind, each killed and resumed; prints JSON.

One process pays the imports and builds the trainers; each training runs in a fork of it, where no thread runs yet. A
child is killed by SIGKILL: from outside after a share of the CPU time that the whole training takes, or by itself at
one of the file operations inside a checkpoint write, a file half written among them, or inside an evaluation, its
batches among them. What is resumed must equal the training that nobody killed: weights byte for byte, every record.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}  # a fork has the threads of nobody

import safetensors.torch
import torch
import transformers.modeling_utils
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from dpo_diag.training.saving import Keep, Saving
from tests.training.tiny import arguments, make_model, make_pairs, make_tokenizer

OF_A_PROCESS = "runtime|per_second"
"""Names of history whose values are this process's own."""
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""Python's audit events that touch files."""
STEPS, SAVE, LOG, EVALUATE = 6, 2, 4, 3


def trainer_of(kind: str, folder: Path) -> DiagDPOTrainer | DiagSFTTrainer:
    """6 steps, a checkpoint every 2 of which 2 stay, a log row every 4: checkpoints cut the logging windows."""
    options: dict[str, Any] = {
        "max_steps": STEPS, "logging_steps": LOG, "eval_strategy": "steps", "eval_steps": EVALUATE,
        "save_strategy": "steps", "save_steps": SAVE, "save_total_limit": 2, "per_device_train_batch_size": 2,
        "lr_scheduler_type": "cosine",
    }  # fmt: skip
    if kind == "accumulation":
        options |= {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1}
    data: dict[str, Any] = {
        "train_dataset": Dataset.from_list(make_pairs(11)), "eval_dataset": Dataset.from_list(make_pairs(4, seed=1)),
        "processing_class": make_tokenizer(), "recorder": folder / "run",
    }  # fmt: skip
    args = arguments(folder / "checkpoints", **options)
    if kind == "sft":
        for name in ("train_dataset", "eval_dataset"):
            data[name] = data[name].rename_column("chosen", "completion").remove_columns("rejected")
        known = {f: getattr(args, f) for f in SFTConfig.__dataclass_fields__ if hasattr(args, f) and f in options}
        kept = ("use_cpu", "bf16", "gradient_checkpointing", "report_to", "disable_tqdm", "learning_rate", "seed",
                "per_device_eval_batch_size", "dataloader_pin_memory")  # fmt: skip
        args = SFTConfig(str(folder / "checkpoints"), **known, **{name: getattr(args, name) for name in kept})
        trainer: Any = DiagSFTTrainer(model=make_model(1), args=args, **data)
    elif kind == "lora":
        adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
        args.disable_dropout = False  # so that the random states matter
        trainer = DiagDPOTrainer(model=make_model(1), args=args, peft_config=adapter, **data)
    else:
        trainer = DiagDPOTrainer(model=make_model(1), ref_model=make_model(2), args=args, **data)
    trainer.keep, trainer.says_next = Keep(at_end=True), False
    return trainer


def train(trainer: Any, folder: Path, resume: bool) -> None:
    """In a child: the trainer as it was built, in another folder."""
    trainer.args.output_dir, trainer._recorder_path = str(folder / "checkpoints"), folder / "run"
    set_seed(trainer.args.seed)  # as the constructor does: since then another training drew in this process
    trainer.train(resume_from_checkpoint=True if resume else None)


def in_child(work: Callable[[], None], log: Path, watch: Callable[[int], None] = lambda pid: None) -> int:
    """The status of a child that does the work: 0, -9 for killed, 1 for an error, whose traceback is in the log."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    watch(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def time_of_children() -> float:
    """CPU seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- where a child is killed ----


def after_seconds(seconds: float) -> Callable[[int], None]:
    """Kill a child once it has had so much of a CPU: however busy the machine is, at the same place but for chance."""

    def watch(pid: int) -> None:
        with suppress(OSError, ValueError):  # it has ended
            while int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) < seconds * 1e9:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)

    return watch


Where = tuple[type, str]
"""A class and its method."""
WRITE: Where = (Saving, "_save_checkpoint")


class Points:
    """Counts the file operations inside a method, or all of them, and dies at number `at` (from 1; None: nowhere)."""

    def __init__(self, at: int | None, where: Where | None) -> None:
        self.at, self.where, self.inside, self.n = at, where, where is None, 0

    def point(self) -> None:
        """One operation is about to be done, or is half done, or done."""
        if self.inside:
            self.n += 1
            if self.n == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """In a child: from now on every operation passes here."""
        own = threading.get_ident()  # signs of life of a lock come by the clock
        sys.addaudithook(lambda event, _: self.point() if event in EVENTS and threading.get_ident() == own else None)
        self._around(os, "fsync")
        self._around(transformers.Trainer, "prediction_step")
        self._written(torch, "save", 1)
        self._written(safetensors.torch, "save_file", 1)
        self._written(transformers.modeling_utils, "safe_save_file", 1)
        if self.where is None:
            return
        owner, name = self.where
        before = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            was, self.inside = self.inside, True
            try:
                return before(*args, **kwargs)
            finally:
                self.inside = was

        setattr(owner, name, called)

    def _around(self, module: Any, name: str) -> None:
        original = getattr(module, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            self.point()
            return original(*args, **kwargs)

        setattr(module, name, called)

    def _written(self, module: Any, name: str, place: int) -> None:
        """A file that is written in C++ or Rust: killed before it, with a first half of it, behind it."""
        original = getattr(module, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            self.point()
            result = original(*args, **kwargs)
            if self.inside and self.n + 1 == self.at:
                os.truncate(args[place], os.path.getsize(args[place]) // 2)
            self.point()
            self.point()
            return result

        setattr(module, name, called)


# ---- what became of it ----


def differences(folder: Path, whole: Path) -> Iterator[str]:
    """What of a resumed training is not as in the one that nobody killed."""
    a, b = load_run(folder / "run"), load_run(whole / "run")
    if a.meta["status"] != "finished":
        yield f"status {a.meta['status']}"
    for table in ("pairs", "tokens", "history", "texts"):
        frames = [run.read(table) for run in (a, b)]
        key = [c for c in ("step", "split", "role", "pair_id", "side", "position", "name") if c in frames[1]]
        if table == "history":
            frames = [f[~f["name"].astype(str).str.contains(OF_A_PROCESS)] for f in frames]
        if table == "texts":
            frames = [f.assign(split=f["split"].astype(str)) for f in frames]
        rows, expected = (f.sort_values(key).reset_index(drop=True).astype(dict.fromkeys(key, str)) for f in frames)
        if rows.duplicated(key).any():
            yield f"{table}: {rows.duplicated(key).sum()} duplicates"
        if not rows.equals(expected):
            merged = rows.merge(expected, on=key, how="outer", indicator=True, suffixes=("", "_whole"))
            odd = merged[(merged["_merge"] != "both") | (merged.get("value", 0) != merged.get("value_whole", 0))]
            yield f"{table}: {len(rows)} rows for {len(expected)}: {odd.head(3).to_dict('records')}"
    names = [sorted(p.name for p in (f / "checkpoints").iterdir() if p.name != "passed-over") for f in (folder, whole)]
    if names[0] != names[1]:
        yield f"checkpoints {names[0]} for {names[1]}"
    for weights in sorted((whole / "checkpoints").glob("*/*.safetensors")):
        own = folder / "checkpoints" / weights.parent.name / weights.name
        if not own.is_file() or own.read_bytes() != weights.read_bytes():
            yield f"weights of {weights.parent.name}"


@contextmanager
def a_folder(path: Path) -> Iterator[Path]:
    """Removed where nothing was wrong in it."""
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


class Kills:
    """Trainings of one kind that are killed and resumed."""

    def __init__(self, kind: str, root: Path) -> None:
        self.trainer = trainer_of(kind, root / "built")
        self.root, self.whole, self.wrong = root, root / "whole", list[str]()
        self.kind = kind
        # Here and not in a child: what is imported late is imported now.
        train(trainer_of(kind, root / "built too"), self.whole, False)
        before = time_of_children()
        with a_folder(root / "timed") as folder:
            assert self.start(folder, None) == 0
        self.seconds = time_of_children() - before

    def count(self, folder: Path, where: Where | None, resume: bool = False) -> int:
        """How many points a training passes."""
        points, log = Points(None, where), folder / "count.log"

        def work() -> None:
            points.install()
            train(self.trainer, folder, resume)
            print(f"\npoints {points.n}", flush=True)

        assert in_child(work, log) == 0, log.read_text()[-2000:]
        return int(log.read_text().rpartition("points ")[2])

    def start(self, folder: Path, points: Points | None, seconds: float | None = None, resume: bool = False) -> int:
        """A training that is killed; returns how it ended."""

        def work() -> None:
            if points is not None:
                points.install()
            train(self.trainer, folder, resume)

        watch = after_seconds(seconds) if seconds is not None else lambda pid: None
        return in_child(work, folder / "killed.log", watch)

    def resume(self, folder: Path, what: str) -> bool:
        """Whether a killed training is resumed and equals the whole one; what is wrong is kept."""
        log = folder / "resumed.log"
        begun = any((folder / "checkpoints").glob("checkpoint-*"))

        def work() -> None:
            try:
                train(self.trainer, folder, True)
            except DiagError as error:
                if begun or error.what != "nothing to resume from":
                    raise
                print("started again")
                shutil.rmtree(folder / "run", ignore_errors=True)
                train(self.trainer, folder, False)

        status = in_child(work, log)
        found = [f"status {status}: {log.read_text()[-1500:]}"] if status else list(differences(folder, self.whole))
        self.wrong += [f"{self.kind}, {what}: {one}" for one in found]
        return not found

    # ---- the four faults ----

    def evenly(self, n: int) -> tuple[int, int]:
        """(tried, lost): killed after i shares of n + 1 of the CPU time that a whole training takes."""
        tried = lost = 0
        for i in range(1, n + 1):
            with a_folder(self.root / f"even-{i}") as folder:
                if self.start(folder, None, self.seconds * i / (n + 1)) == -signal.SIGKILL:
                    tried += 1
                    lost += not self.resume(folder, f"killed at {i}/{n + 1} of its time")
        return tried, lost

    def inside(self, where: Where, n: int) -> tuple[int, int]:
        """Killed at n of the points inside a method, evenly spread."""
        with a_folder(self.root / "counted") as folder:
            points = self.count(folder, where)
        return self._each(where[1], n, points, lambda at: Points(at, where))

    def resuming(self, n: int) -> tuple[int, int]:
        """Killed inside its second checkpoint write, and again at n of the file operations of its going on."""
        with a_folder(self.root / "counted") as folder:
            half = self.count(folder, WRITE) // 2
        with a_folder(self.root / "counted") as folder:
            assert self.start(folder, Points(half, WRITE)) == -signal.SIGKILL
            points = self.count(folder, None, resume=True)
        return self._each("resume", n, points, lambda at: Points(at, None), before=Points(half, WRITE))

    def _each(
        self, name: str, n: int, points: int, kill: Callable[[int], Points], before: Points | None = None
    ) -> tuple[int, int]:
        """`before`: where it is killed first, and then resumed."""
        lost = 0
        chosen = sorted({1 + (points - 1) * i // max(n - 1, 1) for i in range(n)})
        for at in chosen:
            with a_folder(self.root / f"{name}-{at}") as folder:
                if before is not None:
                    assert self.start(folder, before) == -signal.SIGKILL
                status = self.start(folder, kill(at), resume=before is not None)
                assert status == -signal.SIGKILL, (status, (folder / "killed.log").read_text()[-2000:])
                lost += not self.resume(folder, f"killed at {name} point {at} of {points}")
        return len(chosen), lost


def main(root: Path, kind: str, even: int, writes: int, resumes: int, evaluations: int) -> None:
    """Print {"rows": [[fault, tried, lost], ...], "wrong": [what, ...]}."""
    warnings.simplefilter("ignore")
    disable_progress_bar()
    printed, sys.stdout = sys.stdout, sys.stderr  # transformers prints every log call
    kills = Kills(kind, root)
    rows = [
        ["SIGKILL in a training, evenly spread", *kills.evenly(even)],
        ["SIGKILL inside a checkpoint write", *kills.inside(WRITE, writes)],
        ["SIGKILL inside an evaluation", *kills.inside((type(kills.trainer), "_evaluate"), evaluations)],
        ["SIGKILL while a killed training goes on", *kills.resuming(resumes)],
    ]
    print(json.dumps({"rows": rows, "wrong": kills.wrong}), file=printed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *(int(n) for n in sys.argv[3:7]))
