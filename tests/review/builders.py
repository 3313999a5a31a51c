"""A small run with answers to review, judgements for it, and the review's server as a process."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from dpo_diag.outputs.answers import Checkpoint
from dpo_diag.records import RunWriter
from dpo_diag.review.items import Item
from dpo_diag.review.judgements import PERSON, Judgement

HOSTILE = (
    '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
    "\u202egnp\u200b\x1b[31m${window.hacked=3}{{x}}"
)

REFERENCE, FIRST, LAST = Checkpoint("ref", 0), Checkpoint("policy", 0), Checkpoint("policy", 40)


def answer(model: str, step: int, prompt: int) -> str:
    """ref and the first step agree; step 40 leaves every fifth answer as it was; one is hostile."""
    if step == 40 and prompt == 17:
        return HOSTILE
    changed = step and prompt % 5 != 0
    return f"Answer {prompt}: it is {'surely ' * (step // 20) if changed else ''}so."


def output_rows(n: int = 30, decoding: str = "d0") -> list[dict[str, object]]:
    looks = [("ref", 0), ("policy", 0), ("policy", 20), ("policy", 40)]
    return [
        {"step": step, "model": model, "prompt_id": f"p{i:02}", "sample": 0, "prompt": f"Question {i}?",
         "tags": ["like_training" if i % 2 else "paraphrased"], "reference": f"It is {i}.",
         "text": answer(model, step, i), "decoding_hash": decoding}
        for model, step in looks
        for i in range(n)
    ]  # fmt: skip


def make_run(path: Path, n: int = 30) -> Path:
    writer = RunWriter(path, kind="trained")
    for row in ("ref", "policy"):
        for step in (0, 20, 40):
            rows = [r for r in output_rows(n) if r["model"] == row and r["step"] == step]
            if rows:
                writer.write("outputs", rows, split=row)
    writer.finish()
    return path


def judgement(item: Item, outcome: str, reviewer: str = "ann", kind: str = PERSON, **more: object) -> Judgement:
    fields: dict[str, object] = {"left": "a", "time": "2026-01-01T00:00:00+00:00", "decoding_hash": item.decoding_hash}
    return Judgement(
        reviewer=reviewer, kind=kind, item=item.id, prompt_id=item.prompt_id, sample=item.sample, a=item.a, b=item.b,
        outcome=outcome, **(fields | more),  # type: ignore[arg-type]
    )  # fmt: skip


_WATCHED = """
import sys
def hook(event, args):
    if event == "socket.connect" and str(args[1][0]) not in ("127.0.0.1", "::1") or event == "socket.getaddrinfo":
        if event == "socket.connect" or str(args[0]) not in ("127.0.0.1", "localhost", "::1", "None"):
            print("OUTSIDE", event, args[1:] if event == "socket.connect" else args[:2], file=sys.stderr, flush=True)
sys.addaudithook(hook)
from dpo_diag.commands.diag import main
sys.exit(main(sys.argv[1:]))
"""


class Server:
    """`dpo-diag ...` as a process of its own, whose attempts to reach the network are written to its error output."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self.log = log
        self.output = log.with_suffix(".out")
        with log.open("ab") as errors, self.output.open("wb") as out:
            self.process = subprocess.Popen([sys.executable, "-c", _WATCHED, *arguments], stdout=out, stderr=errors)

    def url(self, seconds: float = 120) -> str:
        """The address that it prints once it listens."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(r"open (http://\S+)", self.output.read_text())
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.kill()
        raise AssertionError(f"no server: {self.output.read_text()} {self.log.read_text()}")

    def outside(self) -> list[str]:
        """What it tried to reach beyond this machine."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("OUTSIDE")]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
