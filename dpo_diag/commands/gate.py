"""`dpo-diag gate RUN --rules gate.yaml`: rules over a run for CI. Exit status 0: all hold; 1: one fails; 2: usage."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder; judged at its last step")
    parser.add_argument(
        "--rules", required=True, metavar="FILE", help="YAML with the rules (see outputs/gate_rules.py)"
    )
    parser.add_argument(
        "--baseline", metavar="STEP|RUN", help="a step of this run, or another run (default: this run's first step)"
    )
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML there")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")


def run(args: argparse.Namespace) -> int:
    from dpo_diag.gate.judge import Gate, junit
    from dpo_diag.gate.rules import load_rules
    from dpo_diag.outputs.terminal import table

    rules = load_rules(args.rules)
    gate = Gate(args.run, args.baseline)
    outcomes = gate.judge_all(rules)
    failed = [o for o in outcomes if o.status == "failed"]
    if args.junit:
        path = Path(args.junit)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(junit(outcomes, args.run))
        print(f"wrote {path}", file=sys.stderr)
    if args.json:
        from dpo_diag.outputs.compare import strict

        document = {"run": args.run, "passed": not failed, "rules": [vars(o) for o in outcomes]}
        print(json.dumps(strict(document), ensure_ascii=False, allow_nan=False))
    else:
        rows = [[o.status.upper() if o.status == "failed" else o.status, o.name, o.reason] for o in outcomes]
        columns = max(100, min(220, shutil.get_terminal_size((160, 24)).columns))
        print("\n".join(table(rows, ["", "rule", "why"], columns)))
        print(", ".join(f"{sum(o.status == s for o in outcomes)} {s}" for s in ("passed", "failed", "skipped")))
    return 1 if failed else 0
