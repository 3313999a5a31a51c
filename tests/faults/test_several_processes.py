"""A training of two processes under torchrun of which one dies, or which are told to end: one line of ours beside
torch's, records and a checkpoint, no hang, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dpo_diag.commands.diag import main
from dpo_diag.records import load_run
from dpo_diag.records.run_lock import owner_is_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CASES = [
    ("1", signal.SIGKILL, "another process of this training ended", "failed"),
    ("0", signal.SIGKILL, "another process of this training ended", "running"),  # nobody is left who writes run.json
    ("1", signal.SIGTERM, "terminated", "interrupted"),
    ("0", signal.SIGTERM, "terminated", "interrupted"),
    ("launcher", signal.SIGTERM, "terminated", "interrupted"),
    ("launcher", signal.SIGINT, "interrupted", "interrupted"),
]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a training that does not end by itself; 21 pairs in steps of 4: each epoch's last is filled up."""
    from tests.training.tiny import make_model, make_pairs, make_tokenizer

    folder = tmp_path_factory.mktemp("several")
    make_model(seed=3).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_pairs(31)), encoding="utf-8")
    return [
        "model=hub", f"model.name={folder / 'model'}", "data=jsonl", f"data.path={folder / 'pairs.jsonl'}",
        "model.device=cpu", "trainer.max_steps=100000", "trainer.eval_steps=100000", "trainer.save_steps=4",
        "trainer.batch_size=2", "trainer.max_length=64", "data.eval_share=0.3", "explain=false",
    ]  # fmt: skip


def ended(run: Path, given: list[str], whom: str, number: int, console: Path) -> int:
    """Start it, send the signal behind the second checkpoint, and wait; returns torchrun's exit status."""
    launcher = [
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_addr=127.0.0.1",
        f"--master_port={_free_port()}",
    ]
    command = [sys.executable, "-m", *launcher, "-m", "dpo_diag.commands.train", *given, f"hydra.run.dir={run}"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    with console.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    children = []
    try:
        end = time.monotonic() + 300
        while not (run / "checkpoints" / "checkpoint-8").is_dir():
            assert time.monotonic() < end and process.poll() is None, console.read_text()[-3000:]
            time.sleep(0.05)
        children = psutil.Process(process.pid).children()
        ranks = {child.environ()["RANK"]: child.pid for child in children}
        os.kill(ranks.get(whom, process.pid), number)
        return process.wait(90)
    finally:
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def is_right(run: Path, console: Path, said: str, status: str) -> str:
    """ "" where it is, else what is wrong."""
    lines = console.read_text(errors="replace").replace("\r", "\n").splitlines()
    ours = [line for line in lines if line.startswith("dpo-train: ")]
    following = [line for line in lines if line.startswith("next: ")]
    if len(ours) != 1 or said not in ours[0]:
        return f"said {ours}"
    if following != ([] if status == "running" else [f"next: dpo-train resume={run}"]):
        return f"next {following}"
    if load_run(run).meta["status"] != status or owner_is_gone(run) != (status == "running"):
        return f"status {load_run(run).meta['status']}"
    if said == "terminated" and not (run / "checkpoints" / f"checkpoint-{_last_step(run)}").is_dir():
        return f"no checkpoint of its last step, {_last_step(run)}"
    return ""


def _last_step(run: Path) -> int:
    return int(load_run(run).read("history").query("split == 'train'")["step"].max())


def test_one_dies_or_is_told_to_end(
    given: list[str], tmp_path: Path, fault: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was stopped goes on, in one process, six steps further: every step once, and doctor finds it whole."""
    lost = []
    for i, (whom, number, said, status) in enumerate(CASES):
        run, console = tmp_path / f"run{i}", tmp_path / f"console{i}"
        code: int | str
        try:
            code = ended(run, given, whom, number, console)
        except subprocess.TimeoutExpired:
            code = "hung"
        wrong = is_right(run, console, said, status) if code == 1 else f"ended with {code}"
        if status == "running" and not wrong:
            assert main(["explain", str(run), "--no-write"]) == 0
            told = " ".join(capsys.readouterr().out.split())
            wrong = "" if "killed at step" in told and f"resume={run}" in told else told
        steps = _last_step(run) + 6
        more = [f"resume={run}", f"trainer.max_steps={steps}"]
        again = subprocess.run([sys.executable, "-m", "dpo_diag.commands.train", *more], capture_output=True, text=True)
        rows = load_run(run).read("history").query("split == 'train' and name == 'loss_exact'")["step"].tolist()
        if again.returncode or sorted(rows) != list(range(1, steps + 1)):
            wrong = f"{wrong} resumed: {again.returncode} {again.stderr[-500:]} {len(rows)} rows of {steps} steps"
        elif main(["doctor", str(run), "--quick"]):
            wrong = f"{wrong} {capsys.readouterr().out}"
        if wrong:
            lost.append((whom, number, wrong, console.read_text(errors="replace")[-1500:]))
    for one in lost:
        print(*one, sep="\n")
    fault("one of two processes of a training killed, or told to end", tried=len(CASES), lost=len(lost))
