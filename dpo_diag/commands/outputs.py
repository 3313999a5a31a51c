"""`dpo-diag outputs RUN`: what the checkpoints wrote for the fixed prompts, side by side, changed ones first."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_outputs
from dpo_diag.records import load_run
from dpo_diag.records.files import write_csv
from dpo_diag.safe_streams import show_styles
from dpo_diag.text import (
    arrow,
    bracket,
    percent,
    plural,
    safe,
    signed,
    table,
    takes_styles,
    terminal_width,
    to_json,
)
from dpo_diag.thresholds import load_thresholds, parse_threshold

if TYPE_CHECKING:
    from dpo_diag.outputs import Comparison
    from dpo_diag.outputs.terminal import Layout

MOVED_ROWS = 12
PHRASE_ROWS = 10
ROOMY = 95
"""Columns from which a change's mean and counts stand beside it: narrower, a table would cut numbers."""


def outputs(
    run: Path,
    /,
    *thresholds: str,
    baseline: str | None = None,
    to_step: Annotated[int | None, Parameter(name="--to")] = None,
    steps: str | None = None,
    models: str | None = None,
    sample: int | None = None,
    outcome: str | None = None,
    tag: str | None = None,
    phrase: str | None = None,
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
    """What the checkpoints wrote for the fixed prompts, side by side: what got worse first, then what got better.

    Args:
        run: a run folder.
        thresholds: NAME=VALUE, e.g. gaming.least_length_ratio=1.2.
        baseline: compare with this step or model (default: sft, ref, or the first step).
        to_step: the step to judge (default: the last).
        steps: show these steps, e.g. 0,20,40 (default: the first and the last).
        models: only these models, e.g. policy,ref.
        sample: which sample of each prompt (default: the lowest to read, the mean of all that are alike in numbers).
        outcome: only these: regression (right to wrong), gain, changed, unchanged; joined by commas.
        tag: only prompts with this tag.
        phrase: only prompts to which an answer holds these words together.
        prompt: only the prompt of this id; may be repeated.
        limit: prompts to show; 0 for all.
        layout: answers in columns or one below the other.
        no_diff: show answers without [-old-]{+new+} marks.
        chars: characters shown per answer.
        width: columns to fill (default: the terminal's).
        color: colour the marks.
        phrase_list: YAML of refusals and hedges instead of the shipped one.
        csv: also write the selected prompts whole: tags, reference, each checkpoint's answer and whether it is right.
        json: one JSON document on standard output.
    """
    opened = load_run(run)
    shown_steps = _steps(steps)
    if limit < 0 or chars < 1:
        raise DiagError("out of range", where="--limit or --chars", expected="positive", usage=True)
    limits = load_thresholds(dict(map(parse_threshold, thresholds)))
    from dpo_diag.outputs.compare import comparison, to_document
    from dpo_diag.outputs.selection import selected
    from dpo_diag.outputs.terminal import Layout

    c = comparison(
        opened, baseline=baseline, to_step=to_step, models=models.split(",") if models else None, sample=sample,
        phrase_list=phrase_list, thresholds=limits,
    )  # fmt: skip
    document = to_document(opened, c)
    chosen = [name.strip() for name in outcome.split(",")] if outcome else []
    entries = selected(document["prompts"], outcomes=chosen, tag=tag, prompts=prompt or (), phrase=phrase)
    if csv:
        _write_csv(csv, c, entries)
    if json:
        print(to_json({**document, "prompts": entries, "next": after_outputs(run)}))
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no UTF-8 still shows something
    if color == "always":
        show_styles(sys.stdout)
    columns = width or terminal_width()
    shape = Layout(
        columns,
        side_by_side=layout == "columns" or (layout == "auto" and columns >= 100),
        diff=not no_diff,
        color=color == "always" or (color == "auto" and takes_styles(sys.stdout)),
        max_chars=chars,
    )
    labels = _labels(c, shown_steps)
    print(*head(document, columns), sep="\n")
    _print_answers(entries, labels, shape, limit)
    _print_tables(document, columns)
    say_next(after_outputs(run))
    return 0


def head(document: dict[str, Any], columns: int) -> list[str]:
    """What was compared, and what became of it."""
    from dpo_diag.styled import wrap

    compared = (
        f"{document['run']}: {document['n_prompts']} prompts{_samples(document['n_samples'])}, "
        f"steps {', '.join(map(str, document['steps'])) or 'none'}; {document['baseline']} against {document['to']}"
    )
    told = (compared, document["sentence"], *_outcomes(document))
    return [row for line in told for row in wrap(safe(line, one_line=True), columns)]


def _outcomes(document: dict[str, Any]) -> list[str]:
    """How many answers went from right to wrong and back, where somebody judged them."""
    of = document["outcomes"]
    if not of["regression"] + of["gain"]:
        return []
    return [f"right → wrong: {of['regression']}, wrong → right: {of['gain']} of {document['n_prompts']} prompts"]


def _samples(n: int) -> str:
    """What the numbers are means over, and which answers are shown."""
    return f" with {n} samples each (numbers: their mean; texts and phrases: the first)" if n > 1 else ""


def _steps(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise DiagError("not a list of steps", where="--steps", got=text, expected="e.g. 0,20,40", usage=True) from None


def _write_csv(path: Path, c: Comparison, entries: list[dict[str, Any]]) -> None:
    """Every checkpoint's answers to the selected prompts."""
    from dpo_diag.outputs.selection import wide

    table_ = wide(entries, {(x.model, x.step): f"{x.model}@{x.step}" for x in c.answers.checkpoints})
    write_csv(path, table_)
    print(f"wrote {path}", file=sys.stderr)


def _labels(c: Comparison, steps: list[int] | None) -> dict[tuple[str, int], str]:
    """(model, step) -> name of the checkpoints to show, in order."""
    own = c.answers.policy_checkpoints()
    if steps is not None:
        known = [x.step for x in own]
        if absent := [s for s in steps if s not in known]:
            raise DiagError("no answers at steps", got=absent, expected=f"some of {known}", usage=True)
        own = [x for x in own if x.step in steps]
    else:
        own = [x for x in own if x in (own[0], c.target)]
    others = [x for x in c.answers.checkpoints if x.model != c.target.model]
    return {(x.model, x.step): x.label for x in [*others, *own]}


def _print_answers(entries: list[dict[str, Any]], labels: dict[tuple[str, int], str], layout: Layout, n: int) -> None:
    from dpo_diag.outputs.terminal import answer_lines

    shown = entries[:n] if n else entries
    for entry in shown:
        print("", *answer_lines(entry, labels, layout), sep="\n")
    if not entries:
        print("\nno prompt fits what was asked")
    if len(shown) < len(entries):
        print(f"\n... {len(entries) - len(shown)} more prompts: --limit 0 shows all")


def _print_tables(document: dict[str, Any], columns: int) -> None:
    """The tables below the answers; those of one checkpoint are of the one that is judged."""
    from dpo_diag.outputs.answers import Checkpoint
    from dpo_diag.outputs.behaviours import ALL
    from dpo_diag.outputs.changed import SINCE
    from dpo_diag.styled import wrap

    baseline, to, level = document["baseline"], document["to"], percent(document["level"])
    at_target = {
        name: [r for r in document[name] if Checkpoint(r["model"], r["step"]).label == to]
        for name in ("behaviours", "tags", "references")
    }

    def section(title: str, header: list[str], rows: list[list[Any]]) -> None:
        if rows:
            print(f"\n{title}", indent(table(header, rows, columns - 2, digits=3), "  "), sep="\n")

    changed: dict[str, dict[str, str]] = defaultdict(dict)
    for r in document["changed"]:
        changed[Checkpoint(r["model"], r["step"]).label][r["since"]] = f"{r['changed']}/{r['n']}"
    since = [s for s in SINCE if any(s in row for row in changed.values())]
    section("Answers changed", ["", *(f"since {s}" for s in since)],
            [[name, *(row.get(s) for s in since)] for name, row in changed.items()])  # fmt: skip
    tested = "".join(f" (q: corrected for {plural(p['tested'], 'n-gram')})" for p in document["phrases"][:1])
    section(
        f"Phrase inflation, {baseline} → {to}{tested}",
        ["phrase", "answers", "log-odds", "q", "in chosen", "in rejected"],
        [[p["phrase"], f"{p['before']} → {p['after']} of {p['n']}", p["log_odds"], p["q"], p["in_chosen"],
          p["in_rejected"]] for p in document["phrases"][:PHRASE_ROWS]],
    )  # fmt: skip
    if not document["phrases"] and baseline != to:
        print("\nPhrase inflation: none beyond chance")
    roomy = int(columns >= ROOMY)
    moved = sorted((b for b in at_target["behaviours"] if b["verdict"] != "unchanged"), key=lambda b: b["tag"] != ALL)
    section(
        f"Moved beyond chance (change: + is wanted; q: corrected for {plural(len(at_target['behaviours']), 'row')})",
        ["behaviour", "tag", *["mean"] * roomy, "change", level, *["+/-/="] * roomy, "q"],
        [[b["behaviour"], b["tag"], *[arrow(b["before"], b["after"], 3)] * roomy,
          signed(b["delta"], 2), bracket(b["low"], b["high"], signed),
          *[f"{b['toward']}/{b['away']}/{b['unchanged']}"] * roomy, b["q"]] for b in moved[:MOVED_ROWS]],
    )  # fmt: skip
    if len(moved) > MOVED_ROWS:
        print(f"  ... {len(moved) - MOVED_ROWS} more in --json")
    section(
        f"By tag at {to} ({document['score']})",
        ["tag", "n", "score", "95 %", "gap to the rest"],
        [[t["tag"], t["n"], t["value"], bracket(t["low"], t["high"]),
          f"{signed(t['gap'])} {bracket(t['gap_low'], t['gap_high'], signed)}"] for t in at_target["tags"]],
    )  # fmt: skip
    section(
        f"Scores against references at {to}",
        ["metric", "value", "95 %", "n", ""],
        [[r["metric"], r["value"], bracket(r["low"], r["high"]), r["n"], r["not_applicable"] or ""]
         for r in at_target["references"]],
    )  # fmt: skip
    section(
        f"Answers under the model that did not write them, nats per answer: {baseline} → each checkpoint",
        ["checkpoint", "answers", "n", "log-prob", f"change, {level}"],
        [[Checkpoint(a["model"], a["step"]).label, "the baseline's" if a["of"] == "old" else "its own", a["n"],
          arrow(a["logp_before"], a["logp_after"]),
          f"{signed(a['delta'])} {bracket(a['low'], a['high'], signed)}"] for a in document["across"]],
    )  # fmt: skip
    print("\nWays to please raters without getting better")
    for finding in document["gaming"]:
        lines = wrap(safe(f"{finding['title']}: {finding['reason']}", one_line=True), columns - 18)
        print(*(f"  {finding['outcome'] if i == 0 else '':<14}  {line}" for i, line in enumerate(lines)), sep="\n")
