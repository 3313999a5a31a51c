"""`dpo-diag explain`: print the narrative, write findings.json, set the exit status for CI."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dpo_diag.commands.destination import add_gained, refuse
from dpo_diag.errors import DiagError
from dpo_diag.records.reader import load_run
from dpo_diag.records.writer import RUN_FILE, write_json
from dpo_diag.thresholds import parse_threshold

FINDINGS = "findings.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, or another trainer's log file or folder")
    parser.add_argument(
        "thresholds", nargs="*", default=[], metavar="NAME=VALUE", help="thresholds, e.g. turning_point.least_dlog=0.02"
    )
    parser.add_argument(
        "--from", dest="from_step", metavar="STEP", help="first step (default: the first measured), or ref"
    )
    parser.add_argument("--to", dest="to_step", type=int, metavar="STEP", help="last step (default: the last measured)")
    parser.add_argument("--split", help="which set (default: a fixed evaluation set)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="pairs in the printed table (default 10)")
    parser.add_argument("--fail-on", action="append", default=[], metavar="WHAT",
                        help="exit 1 when harmful, or when checks speak: speaks:DVG001,DVG011")  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="follow a growing run or log and say what changed")
    parser.add_argument("--interval", type=float, default=5.0, metavar="SECONDS", help="how often --watch looks")
    parser.add_argument("--loss", help="of a log that does not name it: e.g. sigmoid or sigmoid,sft")
    parser.add_argument("--beta", type=float, help="of a log that does not name it")
    parser.add_argument("--destination", action="store_true",
                        help="load both checkpoints: which tokens gained where the answers lost most")  # fmt: skip
    parser.add_argument("--checkpoint-from", metavar="MODEL", help="the first step's model (default: found by the run)")
    parser.add_argument("--checkpoint-to", metavar="MODEL", help="the last step's model (default: found by the run)")
    parser.add_argument("--device", default="auto", help="of --destination: auto, cpu, cuda, mps")
    parser.add_argument("--no-write", action="store_true", help="do not write findings.json into the run")


def run(args: argparse.Namespace) -> int:
    rules = [rule for text in args.fail_on for rule in _rules(text)]
    thresholds = dict(parse_threshold(text) for text in args.thresholds)
    refuse(args)
    if args.watch:
        return _watch(args, thresholds, rules)
    document = _explain(Path(args.run), args, thresholds)
    _print(document, args)
    return _status(document, rules)


def _rules(text: str) -> list[tuple[str, frozenset[str]]]:
    """One rule, or "harmful" and another one joined by a comma or a bar."""
    first, rest = text[:7], text[8:]
    if first == "harmful" and rest and text[7] in ",|":
        return [_rule(first), _rule(rest)]
    return [_rule(text)]


def _rule(text: str) -> tuple[str, frozenset[str]]:
    kind, _, codes = text.partition(":")
    wanted = frozenset(c.strip().upper() for c in codes.split(",") if c.strip())
    if kind not in ("harmful", "speaks") or (kind == "harmful" and codes):
        raise DiagError(
            "not a rule", where="--fail-on", got=text, expected="harmful, speaks or speaks:DVG001,...", usage=True
        )
    return kind, wanted


def _status(document: dict[str, Any], rules: list[tuple[str, frozenset[str]]]) -> int:
    """1 if any rule holds, told on standard error; a named code that no check has is a usage error."""
    spoken = {c["code"]: c for c in document["checks"] if c["outcome"] == "speaks"}
    known = {c["code"] for c in document["checks"]}
    failed = []
    for kind, codes in rules:
        unknown = codes - known
        if unknown:
            raise DiagError("no such check", where="--fail-on", got=", ".join(sorted(unknown)),
                            expected=f"one of {', '.join(sorted(known))}", usage=True)  # fmt: skip
        if kind == "harmful" and document["verdict"]["harm"] == "harmful":
            failed.append(f"harmful: {document['verdict']['text']}")
        if kind == "speaks":
            failed += [f"{c}: {spoken[c]['reason']}" for c in sorted(codes & set(spoken) if codes else spoken)]
    for line in failed:
        print(f"dpo-diag explain: fail-on {line}", file=sys.stderr)
    return 1 if failed else 0


def _explain(path: Path, args: argparse.Namespace, thresholds: dict[str, float]) -> dict[str, Any]:
    from dpo_diag.diagnosis import explain

    if (path / RUN_FILE).is_file() or not path.exists():
        if args.loss is not None or args.beta is not None:
            raise DiagError(
                "a run folder names its loss itself", where="--loss, --beta", hint="only a log needs them", usage=True
            )
        opened = load_run(path)
        document = explain(opened, args.from_step, args.to_step, args.split, thresholds)
        if args.destination:
            document = add_gained(document, opened, args, thresholds)
        if not args.no_write:
            _write(path / FINDINGS, document)
        return document
    if args.destination:
        raise DiagError("--destination needs a run folder", where=path, got="a log", usage=True)
    from dpo_diag.importers import Options, import_path

    options = Options(loss=tuple((args.loss or "").replace(" ", "").split(",")) if args.loss else (), beta=args.beta)
    with tempfile.TemporaryDirectory(prefix="dpo_diag_") as folder:
        out = Path(folder) / "run"
        import_path(path, out, options=options)
        document = explain(load_run(out), args.from_step, args.to_step, args.split, thresholds)
    return {**document, "run": str(path)}


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        write_json(path, document)
    except OSError as error:
        print(f"dpo-diag explain: findings not written: {error}", file=sys.stderr)


def _print(document: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(document, allow_nan=False, ensure_ascii=False))
        return
    from dpo_diag.diagnosis.tables import render_document

    print(render_document(document, args.top))
    if not args.no_write and (Path(args.run) / RUN_FILE).is_file():
        print(f"\nwrote {Path(args.run) / FINDINGS}")


def _signature(path: Path) -> tuple[Any, ...]:
    """Changes whenever a record file (or the log) does; findings of our own do not count."""
    if path.is_file():
        state = path.stat()
        return (state.st_mtime_ns, state.st_size)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != FINDINGS and not p.name.startswith("."))
    return tuple((str(p), s.st_mtime_ns, s.st_size) for p in files for s in [p.stat()])


def _watch(args: argparse.Namespace, thresholds: dict[str, float], rules: list[tuple[str, frozenset[str]]]) -> int:
    """Explain whenever the records change, print what changed; ends when run.json says that the run ended."""
    from dpo_diag.diagnosis.tables import render_change

    path, seen, before = Path(args.run), None, None
    while True:
        now = _signature(path) if path.exists() else None
        if now is not None and now != seen:
            seen = now
            try:
                document = _explain(path, args, thresholds)
            except DiagError as error:
                if error.usage:
                    raise
                print(f"waiting: {error}", file=sys.stderr, flush=True)
            else:
                if args.json:
                    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)
                else:
                    print(render_change(before, document), flush=True)
                before = document
        if before is not None and (path / RUN_FILE).is_file() and load_run(path).meta.get("status") != "running":
            return _status(before, rules)
        time.sleep(args.interval)
