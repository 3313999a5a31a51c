"""`dpo-diag outputs RUN`: what the checkpoints wrote for the fixed prompts, side by side, changed ones first."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dpo_diag.errors import DiagError
from dpo_diag.text import to_json

MOVED_ROWS = 12


@dataclass(frozen=True)
class _Show:
    """How the answers are printed."""

    columns: int
    side_by_side: bool
    diff: bool
    color: bool
    chars: int
    limit: int


def outputs(
    run: Path,
    /,
    *,
    baseline: str | None = None,
    to_step: Annotated[int | None, Parameter(name="--to")] = None,
    steps: str | None = None,
    models: str | None = None,
    sample: int | None = None,
    tag: str | None = None,
    prompt: list[str] | None = None,
    limit: int = 10,
    layout: Literal["auto", "columns", "stacked"] = "auto",
    no_diff: bool = False,
    chars: int = 600,
    width: int | None = None,
    color: Literal["auto", "always", "never"] = "auto",
    phrase_list: Path | None = None,
    csv: Path | None = None,
    json: bool = False,
) -> int:
    """What the checkpoints wrote for the fixed prompts, side by side, changed ones first.

    Args:
        run: a run folder.
        baseline: compare with this step or model (default: sft, ref, or the first step).
        to_step: the step to judge (default: the last).
        steps: show these steps, e.g. 0,20,40 (default: the first and the last).
        models: only these models, e.g. policy,ref.
        sample: which sample of each prompt (default: the lowest).
        tag: show only prompts with this tag.
        prompt: show only the prompt of this id; may be repeated.
        limit: prompts to show; 0 for all.
        layout: answers in columns or one below the other.
        no_diff: show answers without [-old-]{+new+} marks.
        chars: characters shown per answer.
        width: columns to fill (default: the terminal's).
        color: colour the marks.
        phrase_list: YAML of refusals and hedges instead of the shipped one.
        csv: also write all answers, one column per checkpoint, as CSV.
        json: one JSON document on standard output.
    """
    from dpo_diag.outputs.compare import comparison, to_document
    from dpo_diag.records import load_run

    opened = load_run(run)
    shown_steps = _steps(steps)
    if limit < 0 or chars < 1:
        raise DiagError("out of range", where="--limit or --chars", expected="positive", usage=True)
    c = comparison(
        opened, baseline=baseline, to_step=to_step, models=models.split(",") if models else None, sample=sample,
        phrase_list=phrase_list,
    )  # fmt: skip
    document = to_document(opened, c)
    entries = _selected(document["prompts"], tag, prompt)
    if csv:
        _write_csv(csv, c)
    if json:
        print(to_json({**document, "prompts": entries}))
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no UTF-8 still shows something
    columns = width or max(60, min(200, shutil.get_terminal_size((100, 24)).columns))
    plain_terminal = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    show = _Show(
        columns,
        side_by_side=layout == "columns" or (layout == "auto" and columns >= 100),
        diff=not no_diff,
        color=color == "always" or (color == "auto" and not plain_terminal),
        chars=chars,
        limit=limit,
    )
    _print(document, entries, c, show, shown_steps)
    return 0


def _steps(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise DiagError("not a list of steps", where="--steps", got=text, expected="e.g. 0,20,40", usage=True) from None


def _selected(entries: list[dict[str, Any]], tag: str | None, prompts: list[str] | None) -> list[dict[str, Any]]:
    if tag:
        tags = sorted({t for e in entries for t in e["tags"] or []})
        entries = [e for e in entries if tag in (e["tags"] or [])]
        if not entries:
            raise DiagError("no prompt has this tag", got=tag, expected=f"one of {tags}", usage=True)
    if prompts:
        known = [e["prompt_id"] for e in entries]
        absent = [p for p in prompts if p not in known]
        if absent:
            raise DiagError("no such prompt", got=absent, expected=f"e.g. {known[:5]}", usage=True)
        entries = [e for e in entries if e["prompt_id"] in prompts]
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


def _print(
    document: dict[str, Any], entries: list[dict[str, Any]], c: Any, show: _Show, steps: list[int] | None
) -> None:
    from dpo_diag.outputs.behaviours import ALL
    from dpo_diag.outputs.sanitize import for_terminal
    from dpo_diag.outputs.terminal import answer_lines, table, wrap

    columns = show.columns
    labels = _labels(c, steps)
    head = (
        f"{document['run']}: {document['n_prompts']} prompts, "
        f"steps {', '.join(map(str, document['steps'])) or 'none'}; {document['baseline']} against {document['to']}"
    )
    for line in (head, document["sentence"]):
        print("\n".join(wrap(for_terminal(line, one_line=True), columns)))
    shown = entries if show.limit == 0 else entries[: show.limit]
    for entry in shown:
        print()
        lines = answer_lines(
            entry,
            labels,
            columns=columns,
            side_by_side=show.side_by_side,
            diff=show.diff,
            color=show.color,
            max_chars=show.chars,
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
