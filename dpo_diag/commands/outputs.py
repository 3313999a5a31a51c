"""`dpo-diag outputs RUN`: what the checkpoints wrote for the fixed prompts, side by side, changed ones first."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError

MOVED_ROWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--baseline", metavar="STEP|MODEL", help="compare with this look (default: sft, ref, or first)")
    parser.add_argument("--to", type=int, metavar="STEP", help="the step to judge (default: the last)")
    parser.add_argument("--steps", metavar="A,B,...", help="show these steps (default: the first and the last)")
    parser.add_argument("--models", metavar="A,B,...", help="only these models, e.g. policy,ref")
    parser.add_argument("--sample", type=int, metavar="N", help="which sample of each prompt (default: the lowest)")
    parser.add_argument("--tag", metavar="TAG", help="show only prompts with this tag")
    parser.add_argument("--prompt", metavar="ID", action="append", help="show only this prompt (may be repeated)")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="prompts to show (default 10; 0 for all)")
    parser.add_argument("--layout", choices=("auto", "columns", "stacked"), default="auto")
    parser.add_argument("--no-diff", action="store_true", help="show answers without [-old-]{+new+} marks")
    parser.add_argument("--chars", type=int, default=600, metavar="N", help="characters shown per answer (default 600)")
    parser.add_argument("--width", type=int, metavar="N", help="columns to fill (default: the terminal's)")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--phrase-list", metavar="FILE", help="YAML of refusals and hedges instead of the shipped one")
    parser.add_argument("--csv", metavar="FILE", help="also write all answers, one column per look, as CSV")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    from dpo_diag.outputs.compare import comparison, to_document
    from dpo_diag.records import load_run

    opened = load_run(args.run)
    steps = _steps(args.steps)
    if args.limit < 0 or args.chars < 1:
        raise DiagError("out of range", where="--limit or --chars", expected="positive", usage=True)
    models = args.models.split(",") if args.models else None
    c = comparison(
        opened, baseline=args.baseline, to_step=args.to, models=models, sample=args.sample, phrase_list=args.phrase_list
    )
    document = to_document(opened, c)
    entries = _selected(document["prompts"], args)
    if args.csv:
        _write_csv(Path(args.csv), c)
    if args.json:
        document["prompts"] = entries
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no UTF-8 still shows something
    _print(document, entries, c, args, steps)
    return 0


def _steps(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise DiagError("not a list of steps", where="--steps", got=text, expected="e.g. 0,20,40", usage=True) from None


def _selected(entries: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.tag:
        tags = sorted({tag for e in entries for tag in e["tags"] or []})
        entries = [e for e in entries if args.tag in (e["tags"] or [])]
        if not entries:
            raise DiagError("no prompt has this tag", got=args.tag, expected=f"one of {tags}", usage=True)
    if args.prompt:
        known = [e["prompt_id"] for e in entries]
        absent = [p for p in args.prompt if p not in known]
        if absent:
            raise DiagError("no such prompt", got=absent, expected=f"e.g. {known[:5]}", usage=True)
        entries = [e for e in entries if e["prompt_id"] in args.prompt]
    return entries


def _write_csv(path: Path, c: Any) -> None:
    from dpo_diag.outputs.sanitize import frame_for_csv

    wide = c.answers.frame.assign(look=[f"{m}@{s}" for m, s in zip(c.answers.frame["model"], c.answers.frame["step"], strict=True)])  # fmt: skip # noqa: E501
    order = [f"{look.model}@{look.step}" for look in c.answers.looks]
    wide = wide.pivot(index="prompt_id", columns="look", values="text")[order]
    path.parent.mkdir(parents=True, exist_ok=True)
    frame_for_csv(wide.reset_index()).to_csv(path, index=False)
    print(f"wrote {path}", file=sys.stderr)


def _labels(c: Any, steps: list[int] | None) -> dict[tuple[str, int], str]:
    own = c.answers.policy_looks()
    if steps is not None:
        known = [look.step for look in own]
        absent = [s for s in steps if s not in known]
        if absent:
            raise DiagError("no answers at steps", got=absent, expected=f"some of {known}", usage=True)
        own = [look for look in own if look.step in steps]
    else:
        own = [look for look in own if look in (own[0], c.look)]
    others = [look for look in c.answers.looks if look.model != c.look.model]
    return {(look.model, look.step): look.label for look in [*others, *own]}


def _print(document: dict[str, Any], entries: list[dict[str, Any]], c: Any, args: Any, steps: list[int] | None) -> None:
    from dpo_diag.outputs.behaviours import ALL
    from dpo_diag.outputs.sanitize import for_terminal
    from dpo_diag.outputs.terminal import answer_lines, table, wrap

    columns = args.width or max(60, min(200, shutil.get_terminal_size((100, 24)).columns))
    color = args.color == "always" or (
        args.color == "auto"
        and sys.stdout.isatty()
        and "NO_COLOR" not in os.environ
        and os.environ.get("TERM") != "dumb"
    )
    labels = _labels(c, steps)
    side = args.layout == "columns" or (args.layout == "auto" and columns >= 100)
    head = (
        f"{document['run']}: {document['n_prompts']} prompts, "
        f"steps {', '.join(map(str, document['steps'])) or 'none'}; {document['baseline']} against {document['to']}"
    )
    for line in (head, document["sentence"]):
        print("\n".join(wrap(for_terminal(line, one_line=True), columns)))
    shown = entries if args.limit == 0 else entries[: args.limit]
    for entry in shown:
        print()
        lines = answer_lines(
            entry, labels, columns=columns, side_by_side=side, diff=not args.no_diff, color=color, max_chars=args.chars
        )
        print("\n".join(lines))
    if len(shown) < len(entries):
        print(f"\n... {len(entries) - len(shown)} more prompts: --limit 0 shows all")

    def section(title: str, rows: list[list[Any]], header: list[str]) -> None:
        lines = table(rows, header, columns)
        if lines:
            print(f"\n{title}")
            print("\n".join("  " + line for line in lines))

    by_look: dict[str, dict[str, Any]] = {}
    for row in document["changed"]:
        name = f"step {row['step']}" if row["model"] == "policy" else row["model"]
        by_look.setdefault(name, {})[row["since"]] = f"{row['changed']}/{row['n']}"
    since = [s for s in ("previous", "first", "reference", "sft") if any(s in v for v in by_look.values())]
    section(
        "Answers changed",
        [[k, *(v.get(s) for s in since)] for k, v in by_look.items()],
        ["", *(f"since {s}" for s in since)],
    )
    section(
        f"Phrase inflation, {document['baseline']} -> {document['to']}",
        [
            [
                p["phrase"],
                f"{p['before']} -> {p['after']} of {p['n']}",
                p["log_odds"],
                p["q"],
                p["in_chosen"],
                p["in_rejected"],
            ]
            for p in document["phrases"][:10]
        ],
        ["phrase", "answers", "log-odds", "q", "in chosen", "in rejected"],
    )
    if not document["phrases"] and document["baseline"] != document["to"]:
        print("\nPhrase inflation: none beyond chance")
    moved = [
        b
        for b in document["behaviours"]
        if b["verdict"] != "unchanged" and (b["model"], b["step"]) == (c.look.model, c.look.step)
    ]
    moved.sort(key=lambda b: b["tag"] != ALL)
    section(
        "Moved beyond chance",
        [
            [
                b["behaviour"],
                b["tag"],
                f"{b['before']:.3f} -> {b['after']:.3f}",
                f"{b['toward']}/{b['away']}/{b['unchanged']}",
                b["q"],
                b["verdict"],
            ]
            for b in moved[:MOVED_ROWS]
        ],
        ["behaviour", "tag", "mean", "toward/away/same", "q", "verdict"],
    )
    if len(moved) > MOVED_ROWS:
        print(f"  ... {len(moved) - MOVED_ROWS} more in --json")
    at_look = [t for t in document["tags"] if (t["model"], t["step"]) == (c.look.model, c.look.step)]
    section(
        f"By tag at {document['to']} ({document['score']})",
        [[t["tag"], t["n"], t["value"], _interval(t), _gap(t)] for t in at_look],
        ["tag", "n", "score", "95 %", "gap to the rest"],
    )
    scored = [r for r in document["references"] if (r["model"], r["step"]) == (c.look.model, c.look.step)]
    section(
        f"Scores against references at {document['to']}",
        [[r["metric"], r["value"], _interval(r), r["n"], r["not_applicable"] or ""] for r in scored],
        ["metric", "value", "95 %", "n", ""],
    )
    section(
        f"Answers under the model that did not write them, nats per answer: {document['baseline']} -> each look",
        [
            [
                f"{a['model']} (step {a['step']})",
                "the baseline's" if a["of"] == "old" else "its own",
                a["n"],
                f"{a['logp_before']:.2f} -> {a['logp_after']:.2f}",
                f"{a['delta']:+.2f} [{a['low']:+.2f}, {a['high']:+.2f}]",
            ]
            for a in document["across"]
        ],
        ["look", "answers", "n", "log-prob", "change, 95 %"],
    )
    print("\nWays to please raters without getting better")
    for finding in document["gaming"]:
        text = for_terminal(f"{finding['title']}: {finding['reason']}", one_line=True)
        for i, line in enumerate(wrap(text, columns - 18)):
            print(f"  {finding['outcome'] if i == 0 else '':<14}  {line}")


def _interval(row: dict[str, Any]) -> str:
    return "-" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"


def _gap(row: dict[str, Any]) -> str:
    if row["gap"] is None:
        return "-"
    return f"{row['gap']:+.3f} [{row['gap_low']:+.3f}, {row['gap_high']:+.3f}]"
