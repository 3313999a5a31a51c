"""`python -m tests.faults.killed_commands FOLDER WORK KILLS`: work on a run, killed and begun again; prints JSON.

As in killed_trainings.py each try runs in a fork, where it is killed by SIGKILL at one of its file operations; what it
said to be safe until then must be there. Then the same work is begun again, as a user would, and must leave what the
work that nobody killed leaves.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dpo_diag import load_run
from dpo_diag.commands.diag import main as dpo_diag
from dpo_diag.inference.generate_run import generate_checkpoints
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.models.checkpoints import Loader
from dpo_diag.models.decoding import Decoding
from dpo_diag.outputs.answers import Checkpoint
from dpo_diag.records import RunWriter
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.merging import FEW, MANY, Parts
from dpo_diag.review import judgements
from tests.faults.killed_trainings import Points, Where, a_folder, in_child
from tests.training.tiny import make_model, make_pairs, make_tokenizer

LOG = Path(__file__).parents[1] / "golden" / "inputs" / "trl_displaced" / "trainer_state.json"
TABLES = ("history", "pairs", "tokens", "texts", "outputs")
PROMPTS = [{"id": f"q{i}", "prompt": f"{i} cat:"} for i in range(6)]
N_JUDGED = 8
N_STEPS = MANY + FEW + 4


def models(folder: Path) -> list[str]:
    """Two tiny checkpoints on disk."""
    for seed in (1, 2):
        make_model(seed).save_pretrained(folder / f"checkpoint-{seed}")
        make_tokenizer().save_pretrained(folder / f"checkpoint-{seed}")
    return [str(folder / "checkpoint-*")]


def imported(run: Path) -> None:
    """`dpo-diag import`, which refuses a folder that holds a finished run."""
    if not ((run / RUN_FILE).is_file() and load_run(run).info.status == "finished"):
        assert dpo_diag(["import", str(LOG), "--out", str(run)]) == 0


def scored(checkpoints: list[str], run: Path) -> None:
    """Two checkpoints on 12 pairs, the first being the reference."""
    score_checkpoints(
        checkpoints, make_pairs(12), run, reference=str(Path(checkpoints[0]).with_name("checkpoint-1")),
        loader=Loader("cpu"), batch_size=4, progress=False,
    )  # fmt: skip


def generated(checkpoints: list[str], run: Path) -> None:
    """Two checkpoints on 6 prompts, in files of 2."""
    generate_checkpoints(
        checkpoints, PROMPTS, run, decoding=Decoding(max_new_tokens=4), loader=Loader("cpu"), chunk=2, progress=False
    )


def judged(run: Path) -> None:
    """The items that have no verdict yet, one line each; the number of lines that are safe is said as it grows."""
    done = {row.item for row in judgements.read(run).rows}
    for item in (f"item-{i}" for i in range(N_JUDGED)):
        if item not in done:
            verdict = judgements.Judgement(
                reviewer="ann", kind=judgements.PERSON, item=item, prompt_id=item, sample=0, a=Checkpoint("policy", 0),
                b=Checkpoint("policy", 2), left="a", outcome="b", time="2026-01-01T00:00:00+00:00",
            )  # fmt: skip
            judgements.append(run, verdict)
            print("safe", item, flush=True)


def compacted(run: Path) -> None:
    """A row of history a step, each in a file of its own, merged on the way and at the end; goes on after the last."""
    done = max(map(int, steps(run)), default=0)
    writer = RunWriter(run, resume_step=done or None)
    for step in range(done + 1, N_STEPS + 1):
        writer.write("history", [{"step": step, "split": "train", "name": "loss", "value": float(step)}], "train")
        print("safe", step, flush=True)
    writer.finish()


def steps(run: Path) -> list[str]:
    """Of the rows of history, as often as they are there; none before there is a run."""
    return [str(s) for s in load_run(run).read("history")["step"]] if (run / RUN_FILE).is_file() else []


def items(run: Path) -> list[str]:
    """With a verdict."""
    return [row.item for row in judgements.read(run).rows]


class Work(NamedTuple):
    """What is done to a run folder; what of it is there, of that which it said to be safe; where it is killed."""

    do: Callable[[Path], None]
    kept: Callable[[Path], list[str]] = lambda run: []
    where: Where | None = None


def works(folder: Path) -> dict[str, Callable[[], Work]]:
    return {
        "an import": lambda: Work(imported), "a scoring": lambda: Work(partial(scored, models(folder))),
        "a generation": lambda: Work(partial(generated, models(folder))), "a review": lambda: Work(judged, items),
        "a compaction": lambda: Work(compacted, steps, (Parts, "merge")),
    }  # fmt: skip


def tables(run: Path) -> dict[str, list[str]]:
    """Every row of every table as text, in one order; the judged items of a run without tables."""
    if (run / judgements.FOLDER).is_dir():
        return {"review": items(run)}
    opened = load_run(run)
    frames = {table: opened.read(table) for table in TABLES}
    return {
        name: sorted(json.dumps(row, default=str, sort_keys=True) for row in frame.to_dict("records"))
        for name, frame in frames.items()
    }


def kill_each(name: str, work: Work, root: Path, kills: int) -> tuple[int, int, list[str]]:
    """(tried, lost, what was wrong) of a work that is killed at `kills` of its file operations, evenly spread."""
    whole, log = root / "whole", root / "log"
    root.mkdir(parents=True, exist_ok=True)

    def begin(run: Path, at: int | None) -> int:
        points = Points(at, work.where)

        def counted() -> None:
            points.install()
            work.do(run)
            print(f"\npoints {points.n}", flush=True)

        return in_child(counted, log)

    assert begin(whole, None) == 0, log.read_text()[-2000:]
    points, expected, wrong = int(log.read_text().rpartition("points ")[2]), tables(whole), list[str]()
    chosen = sorted({1 + (points - 1) * i // max(kills - 1, 1) for i in range(kills)})
    tried = len(chosen)
    for at in chosen:
        with a_folder(root / f"at-{at}") as folder:
            run = folder / "run"
            where = f"{name}, killed at {at} of {points}"
            status = begin(run, at)
            if status == 0 and at == points and tables(run) == expected:
                tried -= 1  # the last operations differ by a few from one time to the next: it had ended before
                continue
            if status != -signal.SIGKILL:
                wrong.append(f"{where}: ended with {status}: {log.read_text()[-800:]}")
                continue
            safe, kept = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("safe ")], []
            half = (run / RUN_FILE).is_file() and load_run(run).info.status != "finished"
            if safe and (missing := set(safe).difference(kept := work.kept(run))):
                wrong.append(f"{where}: {sorted(missing)} were safe and are gone")
            elif len(kept) > len(set(kept)):
                wrong.append(f"{where}: {kept} are there, some of them again")
            elif half and not {"Not", "finished", "killed"} <= set(re.findall(r"\w+", told := explained(run, log))):
                wrong.append(f"{where}: half a work is explained as {told[-800:]}")
            elif (status := in_child(partial(work.do, run), log)) != 0:
                wrong.append(f"{where}: begun again it ends with {status}: {log.read_text()[-800:]}")
            elif (found := tables(run)) != expected:
                wrong.append(f"{where}: {[t for t in expected if found.get(t) != expected[t]]} differ")
            elif leftovers := [p.name for p in run.rglob("*.tmp*")]:
                wrong.append(f"{where}: {leftovers} are left")
    return tried, len(wrong), wrong


def explained(run: Path, log: Path) -> str:
    """What explain prints of a folder."""
    in_child(lambda: print(dpo_diag(["explain", str(run)])), log)
    return log.read_text()


def main(root: Path, name: str, kills: int) -> None:
    """Print {"rows": [[fault, tried, lost], ...], "wrong": [what, ...]}."""
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True  # the first try would do it, and count it
    tried, lost, wrong = kill_each(name, works(root / "models")[name](), root, kills)
    print(json.dumps({"rows": [[f"SIGKILL in {name}", tried, lost]], "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
