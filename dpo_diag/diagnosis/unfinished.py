"""A work that did not come to its end: how far it came, and what goes on with it.

Of half a training, scoring or generation much cannot be known: that nothing was trained or learned, that all is well.
The verdict asks here before it says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dpo_diag.diagnosis.sweep_jobs import job_at
from dpo_diag.next_steps import after_unfinished
from dpo_diag.records import Run
from dpo_diag.text import number, plural


@dataclass(frozen=True)
class Unfinished:
    """How a run stands that is not finished.

    Attributes:
        how: "running", "killed" (without a word), "stopped" (told to end) or "failed".
        reached: "step 40 of 80", "1 of 2 checkpoints"; "" where nothing is recorded.
        error: what ended a failed one, in a line.
        go_on: the commands that go on with it, or that follow it while it runs.
    """

    how: str
    reached: str
    error: str | None
    go_on: tuple[str, ...]

    @property
    def line(self) -> str:
        """ "killed at step 40 of 80", "running, 1 of 2 checkpoints", "failed before its first record"."""
        if not self.reached:
            return (
                f"{self.how} before its first record" if self.how != "running" else "running, nothing is recorded yet"
            )
        between = {"running": ", "}.get(self.how, " at " if self.reached.startswith("step") else " after ")
        return f"{self.how}{between}{self.reached}"

    def sentences(self) -> list[str]:
        """What ended a failed one, and the first command that goes on, or follows a running one."""
        then = "It is followed by" if self.how == "running" else "To go on"
        ended = [f"What ended it: {self.error.rstrip('.')}."] if self.error else []
        return ended + [f"{then}: {command}" for command in self.go_on[:1]]

    def document(self) -> dict[str, Any]:
        """As the explanation holds it."""
        return asdict(self) | {"line": self.line, "go_on": list(self.go_on)}


def unfinished(run: Run) -> Unfinished | None:
    """How a run stands; None for a finished one, and where it does not say."""
    if run.info.status in (None, "finished"):
        return None
    job = job_at(run.path)
    stopped = "stopped" if run.info.status == "interrupted" else "killed"
    how = job.status if job.status in ("running", "failed") else stopped
    reached = _measured(run) if run.kind == "scored" else _trained(run, job.progress)
    error = (job.reason or run.info.error) if how == "failed" else None
    return Unfinished(how, reached, error, tuple(after_unfinished(run, running=how == "running")))


def _trained(run: Run, progress: str) -> str:
    """The last recorded step of all; where epochs decide, the epoch."""
    epochs = run.info.training.num_train_epochs
    if not progress or " of " in progress or not epochs:
        return progress
    epoch = run.read("history", ["epoch"])["epoch"].max()
    return progress if not epoch > 0 else f"{progress}, epoch {number(epoch)} of {number(epochs)}"


def _measured(run: Run) -> str:
    """How many checkpoints were measured, of how many; a generation's last one may lack answers."""
    pairs = run.read("pairs", ["step"], roles=["policy"]) if run.has("pairs") else None
    answers = run.read("outputs", ["model", "step"]) if run.has("outputs") else None
    if pairs is None and answers is None:
        return ""
    known, asked = (pairs if pairs is not None else answers), run.info.checkpoints_asked
    assert known is not None
    n = len(known.drop_duplicates())
    of = plural(n, "checkpoint") if asked is None else f"{n} of {plural(asked, 'checkpoint')}"
    return of if pairs is not None or answers is None else f"{plural(len(answers), 'answer')} by {of}"
