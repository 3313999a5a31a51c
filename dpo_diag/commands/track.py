"""`dpo-diag track`: send a finished run's records to W&B or trackio; optionally save a W&B report over them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.records.writer import RUN_FILE, without_secrets, write_json
from dpo_diag.report.displays.curves import evaluation_split
from dpo_diag.tracking import make_tracker, mirror


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--kind", choices=("wandb", "trackio"), default="wandb")
    parser.add_argument("--mode", choices=("offline", "online"), default="offline", help="wandb: files only, or send")
    parser.add_argument("--project", default="dpo_diag")
    parser.add_argument("--entity", help="W&B team or user; needed with --report")
    parser.add_argument("--group", help="W&B group (default: WANDB_RUN_GROUP)")
    parser.add_argument("--name", help="the run's name there (default: a unique one from its folder)")
    parser.add_argument("--report", action="store_true", help="save a W&B report, too (with --mode online)")
    parser.add_argument("--report-spec", metavar="FILE", help="write the W&B report's spec as JSON; needs no network")


def run(args: argparse.Namespace) -> int:
    opened = load_run(args.run)
    if (args.report or args.report_spec) and not args.entity:
        raise DiagError("a W&B report needs an entity", hint="add --entity TEAM", usage=True)
    if args.report and (args.kind != "wandb" or args.mode != "online"):
        raise DiagError(
            "a report is saved online", hint="--kind wandb --mode online, or --report-spec FILE", usage=True
        )
    tracker = make_tracker(args.kind, project=args.project, mode=args.mode, entity=args.entity, group=args.group)
    where = mirror(opened, tracker, args.name)
    if tracker.failures:
        raise DiagError(
            "the run was not mirrored whole", got=tracker.failures[0], hint="check the service, then repeat"
        )
    noted = {**opened.meta, "tracking": without_secrets(where)}
    write_json(opened.path / RUN_FILE, noted)
    if args.report or args.report_spec:
        _report(opened, args)
    print(json.dumps(where, ensure_ascii=False))
    return 0


def _report(opened: Run, args: argparse.Namespace) -> None:
    from dpo_diag.diagnosis import explain
    from dpo_diag.report.wandb_report import build_report, save_report, write_spec

    history = opened.history
    scores = history.loc[history["name"].str.startswith("score/"), ["split", "name"]].drop_duplicates()
    try:
        explanation = dict(explain(opened))
    except DiagError:
        explanation = {}
    report = build_report(
        args.project,
        args.entity,
        explanation=explanation,
        split=evaluation_split(opened, explanation.get("split")) or "eval",
        scores=[f"{split}/{name}" for split, name in scores.itertuples(index=False, name=None)],
        group=args.group,
    )
    if args.report_spec:
        print(write_spec(report, Path(args.report_spec)))
    if args.report:
        print(save_report(report))
