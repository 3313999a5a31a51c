"""A training is stopped at any moment, or runs out of disk, file size or memory: one line, a status that is true, and
the command that it names ends it. Real signals, a real full file system, real limits, each in a forked process."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_diag.records import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 8


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a short training; everything that it imports is imported, so that children fork quickly."""
    import dpo_diag.commands.after_run
    import dpo_diag.diagnosis
    import dpo_diag.report
    import dpo_diag.training.job  # noqa: F401
    from tests.training.tiny import make_model, make_pairs, make_tokenizer

    folder = tmp_path_factory.mktemp("with space")
    make_model(seed=3).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = "".join(json.dumps(row) + "\n" for row in make_pairs(30))
    (folder / "pairs.jsonl").write_text(rows, encoding="utf-8")
    prompts = "".join(json.dumps({"id": f"q{i}", "prompt": f"{i} cat:"}) + "\n" for i in range(4))
    (folder / "prompts.jsonl").write_text(prompts)
    return [
        "model=hub", f"model.name='{folder / 'model'}'", "data=jsonl", f"data.path='{folder / 'pairs.jsonl'}'",
        "prompts=file", f"prompts.path='{folder / 'prompts.jsonl'}'", "prompts.max_new_tokens=4", "model.device=cpu",
        f"trainer.max_steps={STEPS}", "trainer.eval_steps=4", "trainer.save_steps=2", "trainer.batch_size=4",
        "trainer.max_length=64", "data.eval_share=0.3",
    ]  # fmt: skip


class Child:
    """dpo-train in a forked process."""

    def __init__(self, arguments: list[str], console: Path, before: Callable[[], None] = lambda: None) -> None:
        # Before the fork, as the child's first moment is the program's: Python's own imports hear no signal of ours.
        from dpo_diag.commands.hydra_app import run_app
        from dpo_diag.commands.train import job

        self.console, begun = console, os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(begun[1])
            os.read(begun[0], 1)  # or its end, of a child that fell
            os.close(begun[0])
            return
        code = 99
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            handle = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1) for n in (1, 2))  # noqa: SIM115
            before()
            os.write(begun[1], b".")
            try:
                code = run_app("dpo-train", "config", job, arguments)
            except BaseException:
                import traceback

                traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def stop(self, number: int, seconds: float) -> int:
        """Send the signal when so many seconds have passed, and wait."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, number)
        return self.wait()

    @property
    def lines(self) -> list[str]:
        return self.console.read_text(errors="replace").replace("\r", "\n").splitlines()


def goes_on(lines: list[str], console: Path) -> bool:
    """Whether the command that was printed last ends well."""
    program, *arguments = shlex.split(lines[-1].removeprefix("next: "))
    if program == "dpo-train":
        return Child(arguments, console).wait() == 0
    return arguments[0] == "explain" and load_run(arguments[1]).meta["status"] in ("finished", "interrupted")


def is_whole(root: Path) -> bool:
    """Whether a run under this folder finished with every step's row once."""
    for file in root.glob("run/*/run.json"):
        run = load_run(file.parent)
        rows = run.read("history").query("split == 'train' and name == 'loss_exact'")["step"].tolist()
        if run.meta["status"] == "finished" and sorted(rows) == list(range(1, STEPS + 1)):
            return True
    return False


def test_stopped_at_any_moment(given: list[str], tmp_path: Path, fault: Callable[..., None]) -> None:
    """SIGINT and SIGTERM, from the first moment to the last: 130 and 143, no traceback, `next:` last; what it names
    ends the training with every step once. Behind its end there is nothing to stop."""
    began = time.monotonic()
    assert Child([*given, f"output_root='{tmp_path / 'whole'}'"], tmp_path / "console").wait() == 0
    whole = time.monotonic() - began
    for name, number, code in (("Ctrl-C", signal.SIGINT, 130), ("SIGTERM", signal.SIGTERM, 143)):
        lost, tries = [], int(os.environ.get("DPO_DIAG_TRIES", "6"))
        for i in range(tries):
            root = tmp_path / f"{name} {i}"
            child = Child([*given, f"output_root='{root}'"], tmp_path / f"console {name} {i}")
            got = child.stop(number, whole * (0.02 + i / tries))
            text, console = "\n".join(child.lines), tmp_path / f"again {name} {i}"
            runs = [load_run(f.parent).meta["status"] for f in root.glob("run/*/run.json")]
            fine = got == 0 or (
                got == code and "Traceback" not in text and child.lines[-1].startswith("next: ")
                and set(runs) <= {"interrupted", "finished"} and goes_on(child.lines, console)
            )  # fmt: skip
            if not (fine and (is_whole(root) or "explain" in child.lines[-1])):
                lost.append((i, got, runs, text[-1500:]))
        for one in lost:
            print(*one, sep="\n")
        fault(f"{name} at any moment of a training", tried=tries, lost=len(lost))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


FULL = r"the disk is full|not be written to its end; got a full disk"
"""The second is torch's, which does not say why."""


def ends_in_one_line(child: Child, code: int, said: str, root: Path, status: str = "failed") -> str:
    """ "" where it does, else what is wrong."""
    text = "\n".join(child.lines)
    told = [line for line in child.lines if line.startswith("dpo-train: ")]
    runs = [load_run(f.parent).meta["status"] for f in root.glob("run/*/run.json")]
    if code != 1 or len(told) != 1 or not re.search(said, told[0]) or "Traceback" in text or set(runs) - {status}:
        return f"{code} {runs} {text[-2500:]}"
    return ""


def resumed(root: Path, child: Child, given: list[str], console: Path) -> bool:
    """Whether the run goes on from its last checkpoint, or from the start where there is none."""
    if child.lines and child.lines[-1].startswith("next: dpo-train"):
        return goes_on(child.lines, console) and is_whole(root)
    return Child([*given, f"output_root='{root}'"], console).wait() == 0 and is_whole(root)


def test_a_full_disk(given: list[str], small_disk: Path, tmp_path: Path, fault: Callable[..., None]) -> None:
    """Room for less and less: one line, status failed; with room again it goes on."""
    lost, rooms = [], (0, 160, 1000)
    for room in rooms:
        root = small_disk / f"runs {room}"
        filler = small_disk / "filler"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(bytes(max(0, free - (room << 10))))
        child = Child([*given, f"output_root='{root}'"], tmp_path / f"console {room}")
        wrong = ends_in_one_line(child, child.wait(), FULL, root)
        filler.unlink()
        if wrong or not resumed(root, child, given, tmp_path / f"again {room}"):
            lost.append((room, wrong, "\n".join(Child.lines.fget(child)[-5:])))  # type: ignore[attr-defined]
        subprocess.run(["rm", "-rf", root], check=True)
    for one in lost:
        print(*one, sep="\n")
    fault("full disk in a training", tried=len(rooms), lost=len(lost))


def test_a_limit_of_a_files_size(given: list[str], tmp_path: Path, fault: Callable[..., None]) -> None:
    """40 KB hold no weights, 4 KB no run.json: told in one line; without the limit it goes on."""
    lost, limits = [], (4_000, 40_000)
    for limit in limits:
        root = tmp_path / f"runs {limit}"
        console = tmp_path / f"console {limit}"

        def limited(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        child = Child([*given, f"output_root='{root}'"], console, limited)
        wrong = ends_in_one_line(child, child.wait(), "a file would be larger than the limit", root)
        if limit < 10_000:  # run.json itself may not be written
            wrong = wrong if "Traceback" in wrong or "larger than the limit" not in "\n".join(child.lines) else ""
        if wrong or not resumed(root, child, given, tmp_path / f"again {limit}"):
            lost.append((limit, wrong))
    for one in lost:
        print(*one, sep="\n")
    fault("limit of a file's size in a training", tried=len(limits), lost=len(lost))


def test_a_read_only_folder(given: list[str], small_disk: Path, tmp_path: Path, fault: Callable[..., None]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    child = Child([*given, f"output_root='{small_disk / 'runs'}'"], tmp_path / "console")
    wrong = ends_in_one_line(child, child.wait(), "read-only", small_disk)
    print(wrong)
    fault("read-only folder", tried=1, lost=int(bool(wrong)))


def test_out_of_memory(given: list[str], tmp_path: Path, fault: Callable[..., None]) -> None:
    """Some memory more than the process has by then: the allocation that fails is wherever it is. Python ends it in one
    line; what cannot say so (a C++ library, Python itself with next to none) aborts or crashes, which the next command
    says of the run. Behind the training's end (the explanation, the report) the run stays finished."""
    lost, rooms = [], (1, 4, 8, 16, 28, 30, 48)
    for room in rooms:
        root = tmp_path / f"runs {room}"

        def limited(room: int = room) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (room << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

        child = Child([*given, f"output_root='{root}'"], tmp_path / f"console {room}", limited)
        code = child.stop(signal.SIGKILL, 240)
        if code == -signal.SIGKILL:
            wrong = "it hangs"
        elif code in (-signal.SIGABRT, -signal.SIGSEGV, 127):  # 127: the C library's loader
            untold = [run for run in root.glob("run/*") if not (is_whole(root) or says_that_it_was_killed(run))]
            wrong = f"nothing is said of {untold}" if untold else ""
        else:
            ended = {load_run(f.parent).meta["status"] for f in root.glob("run/*/run.json")}
            status = "finished" if ended == {"finished"} else "failed"
            wrong = "" if code == 0 else ends_in_one_line(child, code, "memory", root, status)
        print(room, code, child.lines[-1:])
        if wrong or not (code == 0 or resumed(root, child, given, tmp_path / f"again {room}")):
            lost.append((room, wrong))
    for one in lost:
        print(*one, sep="\n")
    fault("out of memory in a training", tried=len(rooms), lost=len(lost))


def says_that_it_was_killed(run: Path) -> bool:
    """What `dpo-diag explain` prints of a run that a library's abort ended: before its first record, or behind it."""
    command = [sys.executable, "-m", "dpo_diag.commands.diag", "explain", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return "Not finished: killed" in done.stdout or "this start ended before its first record" in done.stderr
