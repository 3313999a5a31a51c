"""`python -m benchmarks.diagnosis [--quick] [--seeds N]`: the confusion matrix; exit status 1 if a clear cause is
missed or a healthy run alarms. Without --quick it also trains, and writes docs/recall.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.diagnosis.plans import healthy, planted
from benchmarks.diagnosis.score import Result, by_code, healthy_table, judge, simulated, summarise, table

RESULTS = Path(__file__).parents[2] / "docs" / "recall.md"


def trained(verbose: bool = False) -> list[Result]:
    """Train each tiny run and judge it; needs torch and TRL."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from datasets.utils.logging import disable_progress_bar

    from benchmarks.diagnosis.trained import TRAININGS, run

    disable_progress_bar()
    results = []
    for training in TRAININGS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            # The trainer prints its rows; standard output holds the table alone.
            with contextlib.redirect_stdout(sys.stderr if verbose else io.StringIO()):
                path = run(training, Path(folder))
            results.append(judge(path, training.name, "trained", training.strength, training.truth, training.follows))
            print(f"trained: {training.name}, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return results


def report(results: list[Result], command: str) -> str:
    """The whole table as Markdown."""
    s = summarise(results)
    kinds = {k: sum(r.kind == k for r in results) for k in ("simulated", "trained")}
    return "\n".join([
        "# Diagnosis: what the checks say about runs whose cause is known", "",
        f"Printed by `{command}`. {len(results)} runs: {kinds['simulated']} simulated, {kinds['trained']} trained for "
        f"real. Causes of clear strength found: {s.found} of {s.clear} (recall {s.recall:.3f}). Healthy runs with a "
        f"false alarm: {s.alarmed} of {s.healthy}. Checks that spoke in a run with another cause, unplanned: "
        f"{s.unplanted}.", "",
        "Clear: the effect exceeds its noise by design and must be found. Weak: inside or near the noise; silence and "
        '"cannot tell" are right answers there. "True of the run": a consequence of the planted cause, named '
        "beforehand in the plan.", "",
        "## Planted causes", "", table(results), "", "## Healthy runs", "", healthy_table(results), "",
        "## By check", "", by_code(results), "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="simulated runs only, one seed, nothing written")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each simulated run (default 3)")
    parser.add_argument("--no-training", action="store_true", help="simulated runs only, nothing written")
    parser.add_argument("--verbose", action="store_true", help="show what the trainers print")
    args = parser.parse_args()
    seeds = 1 if args.quick else args.seeds
    results = simulated([*healthy(seeds), *planted(seeds)])
    if not (args.quick or args.no_training):
        results += trained(args.verbose)
    command = " ".join(["python -m benchmarks.diagnosis", *sys.argv[1:]])
    document = report(results, command)
    print(document)
    for r in results:
        if (r.strength == "clear" and r.missed) or (r.strength == "healthy" and r.extra):
            print(f"FAILED {r.kind} {r.name}: missed {r.missed}, also spoke {r.extra}", file=sys.stderr)
    if not (args.quick or args.no_training):
        RESULTS.write_text(document, encoding="utf-8")
    return 0 if summarise(results).passed else 1


if __name__ == "__main__":
    sys.exit(main())
