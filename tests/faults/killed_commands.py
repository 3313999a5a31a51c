"""`python -m tests.faults.killed_commands FOLDER KILLS`: work on run folders, killed and begun again; prints JSON.

As in killed_trainings.py each try runs in a fork, where it is killed by SIGKILL at one of its file operations; then the
same work is begun again, as a user would, and must leave what the work that nobody killed leaves.
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

from dpo_diag import load_run
from dpo_diag.commands.diag import main as dpo_diag
from dpo_diag.inference.generate_run import generate_checkpoints
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.models.checkpoints import Loader
from dpo_diag.models.decoding import Decoding
from dpo_diag.outputs.answers import Checkpoint
from dpo_diag.records.files import RUN_FILE
from dpo_diag.review import judgements
from tests.faults.killed_trainings import Points, a_folder, in_child
from tests.training.tiny import make_model, make_pairs, make_tokenizer

LOG = Path(__file__).parents[1] / "golden" / "inputs" / "trl_displaced" / "trainer_state.json"
TABLES = ("history", "pairs", "tokens", "texts", "outputs")
PROMPTS = [{"id": f"q{i}", "prompt": f"{i} cat:"} for i in range(6)]
N_JUDGED = 8


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


def tables(run: Path) -> dict[str, list[str]]:
    """Every row of every table as text, in one order; the judged items of a run without tables."""
    if (run / judgements.FOLDER).is_dir():
        return {"review": [row.item for row in judgements.read(run).rows]}
    opened = load_run(run)
    frames = {table: opened.read(table) for table in TABLES}
    return {
        name: sorted(json.dumps(row, default=str, sort_keys=True) for row in frame.to_dict("records"))
        for name, frame in frames.items()
    }


def kill_each(name: str, work: Callable[[Path], None], root: Path, kills: int) -> tuple[int, int, list[str]]:
    """(tried, lost, what was wrong) of a work that is killed at `kills` of its file operations, evenly spread."""
    whole, log = root / "whole", root / "log"
    root.mkdir(parents=True)

    def begin(run: Path, at: int | None) -> int:
        points = Points(at, everywhere=True)

        def counted() -> None:
            points.install()
            work(run)
            print(f"\npoints {points.n}", flush=True)

        return in_child(counted, log)

    assert begin(whole, None) == 0, log.read_text()[-2000:]
    points, expected, wrong = int(log.read_text().rpartition("points ")[2]), tables(whole), list[str]()
    chosen = sorted({1 + (points - 1) * i // max(kills - 1, 1) for i in range(kills)})
    for at in chosen:
        with a_folder(root / f"at-{at}") as folder:
            run = folder / "run"
            where = f"{name}, killed at {at} of {points}"
            if (status := begin(run, at)) != -signal.SIGKILL:
                wrong.append(f"{where}: ended with {status}: {log.read_text()[-800:]}")
                continue
            safe = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("safe ")]
            half = (run / RUN_FILE).is_file() and load_run(run).info.status != "finished"
            if half and not {"Not", "finished", "killed"} <= set(re.findall(r"\w+", told := explained(run, log))):
                wrong.append(f"{where}: half a work is explained as {told[-800:]}")
            elif (status := in_child(partial(work, run), log)) != 0:
                wrong.append(f"{where}: begun again it ends with {status}: {log.read_text()[-800:]}")
            elif (found := tables(run)) != expected:
                wrong.append(f"{where}: {[t for t in expected if found.get(t) != expected[t]]} differ")
            elif not set(safe) <= set(found.get("review", safe)):
                wrong.append(f"{where}: of {safe} {found['review']} are there")
            elif leftovers := [p.name for p in run.rglob("*.tmp*")]:
                wrong.append(f"{where}: {leftovers} are left")
    return len(chosen), len(wrong), wrong


def explained(run: Path, log: Path) -> str:
    """What explain prints of a folder."""
    in_child(lambda: print(dpo_diag(["explain", str(run)])), log)
    return log.read_text()


def main(root: Path, kills: int) -> None:
    """Print {"rows": [[fault, tried, lost], ...], "wrong": [what, ...]}."""
    warnings.simplefilter("ignore")
    checkpoints = models(root / "models")
    works: dict[str, Callable[[Path], None]] = {
        "an import": imported, "a scoring": partial(scored, checkpoints),
        "a generation": partial(generated, checkpoints), "a review": judged,
    }  # fmt: skip
    rows, wrong = [], []
    for name, work in works.items():
        tried, lost, found = kill_each(name, work, root / name.split()[-1], kills)
        rows.append([f"SIGKILL in {name}", tried, lost])
        wrong += found
    print(json.dumps({"rows": rows, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
