"""Slurm's own programs: a script sent as a job array, or some of its tasks again, and what of it still waits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dpo_diag.errors import DiagError

HOST = "slurm"
"""Who runs the jobs of a submitted sweep (`JobState.host`); its `pid` is the array's number, 0 where none was sent."""
_ARRAY = re.compile(r"^#SBATCH --array=\S*?(%\d+)?$", re.MULTILINE)


def send(script: Path, tasks: Sequence[int] | None = None) -> int:
    """Hand a script to sbatch, or some of its tasks alone, as many at a time as before; returns Slurm's number.

    Raises:
        DiagError: there is no sbatch here, or it refuses.
    """
    options = ["--parsable"]
    if tasks is not None:
        at_a_time = _ARRAY.search(script.read_text(encoding="utf-8"))
        options.append(f"--array={','.join(map(str, tasks))}{(at_a_time and at_a_time.group(1)) or ''}")
    try:
        done = subprocess.run(["sbatch", *options, str(script)], capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise DiagError("sbatch is not on this machine", hint=f"on the login node: sbatch {script}") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise DiagError("sbatch refused it", where=script, got=said, hint=f"mend the script, then: sbatch {script}")
    number = done.stdout.strip().partition(";")[0]
    return int(number) if number.isdigit() else 0


def can_send() -> bool:
    return shutil.which("sbatch") is not None


def queue(number: int) -> Counter[str] | None:
    """How many tasks of an array Slurm still has, by state and reason ("PENDING (Resources)"); empty for none; None
    where nothing here can tell."""
    if not number:
        return None
    call = ["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%T (%r)"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        # An array that is over is no valid number any more; anything else is a scheduler that does not answer.
        return Counter() if "invalid job id" in done.stderr.lower() else None
    return Counter(line.strip().removesuffix(" (None)") for line in done.stdout.splitlines() if line.strip())
