"""`dpo-diag import PATH [PATH ...]`: turn another trainer's log or sums into a run folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_formats, after_import
from dpo_diag.text import safe, table, terminal_width, to_json


def import_log(
    *paths: str,
    out: Path | None = None,
    into: Path | None = None,
    as_name: Annotated[str | None, Parameter(name="--as")] = None,
    formats: bool = False,
    loss: str | None = None,
    loss_weights: str | None = None,
    beta: float | None = None,
    label_smoothing: float | None = None,
    reference_free: bool = False,
    logps: Literal["sum", "mean"] | None = None,
    decimal: Literal["point", "comma"] | None = None,
    trainer: str | None = None,
    trainer_version: str | None = None,
    logging_steps: int | None = None,
    split: str | None = None,
    run: str | None = None,
    step: int | None = None,
    scores: Path | None = None,
    texts: Path | None = None,
    json: bool = False,
) -> int:
    """Turn another trainer's log or sums into a run; the run folder alone on the last line.

    Args:
        paths: log, archive, checkpoint or output folder, W&B run; several of one run.
        out: run folder to write (default: runs/imported/NAME).
        into: a run that an evaluation's results are added to (lm-evaluation-harness, Inspect).
        as_name: format; recognised if absent (see --formats).
        formats: print the formats and the table of names, and stop.
        loss: loss type, or several joined by commas: sigmoid, ipo, kto, orpo, simpo, cpo, sigmoid,sft, ...
        loss_weights: one factor per loss type, joined by commas.
        beta: beta of the loss.
        label_smoothing: label smoothing; with sigmoid this is cDPO.
        reference_free: the rewards are beta times the log-probs, not log-ratios to a reference.
        logps: logged log-probs are token sums or token means.
        decimal: the decimal mark of a text table, where `1,000` can be read two ways.
        trainer: trainer that wrote the log, where it is not recognised (trl, openrlhf, ...).
        trainer_version: its version, e.g. 0.12.0.
        logging_steps: optimizer steps between two rows of a log without steps.
        split: split of rows that name none (per-pair tables and scores; default: eval).
        run: which run of a project that holds several (trackio, W&B).
        step: of an evaluation's results whose model and path name no checkpoint.
        scores: task scores: rows of step, name, value, n (JSON lines or CSV), or an evaluation's results.
        texts: pairs (prompt, chosen, rejected) in the order of an array's prompts.
        json: one JSON document on standard output.
    """
    if formats:
        return _print_formats(json)
    if not paths:
        raise DiagError("no file named", expected="dpo-diag import PATH [--out RUN]", usage=True)
    # A name without slash and colon is no address of a W&B run: that much is known before a format is imported.
    if absent := [path for path in paths if not {"/", ":"} & set(path) and not Path(path).exists()]:
        raise DiagError("no such file or folder", where=absent[0], hint="check the path", usage=True)
    from dpo_diag.losses import names_of

    names, weights = names_of(loss), _numbers(loss_weights)
    from dpo_diag.importers import Options, import_path

    options = Options(
        loss=names,
        loss_weights=weights,
        beta=beta,
        label_smoothing=label_smoothing,
        reference_free=reference_free,
        logps=logps,
        decimal=decimal,
        trainer=trainer,
        trainer_version=trainer_version,
        logging_steps=logging_steps,
        split=split,
        run=run,
        step=step,
        scores=scores,
        texts=texts,
    )
    result = import_path(list(paths), out, as_name, options, into)
    following = after_import(result["run"])
    if json:
        print(to_json({**result, "next": following}))
        return 0
    _print_result(result)
    say_next(following, sys.stderr)
    return 0


def _numbers(text: str | None) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DiagError("--loss-weights are numbers", got=text, expected="e.g. 1,0.5", usage=True) from error


def _print_result(result: dict[str, Any]) -> None:
    version = f" {result['trainer_version']}" if result["trainer_version"] else ""
    left = [
        f"{result[key]} {word}"
        for key, word in (
            ("duplicates", "duplicates"),
            ("summary_rows", "summary rows"),
            ("skipped_count", "unreadable"),
        )
        if result[key]
    ]
    print(f"read {result['read']} of {result['rows']} rows as {result['format']} ({result['trainer']}{version})"
          + (f"; {', '.join(left)}" if left else ""))  # fmt: skip
    if result["steps_from"]:
        print(f"steps: {result['steps_from']}")
    if result["beta"] is not None:
        print(f"beta: {result['beta']:g}")
    for name in result["merged"]:
        print(f"merged: {safe(name, one_line=True)}")
    for note in result["notes"]:
        print(f"note: {safe(note, one_line=True)}")
    for row in result["skipped"][:10]:
        where = f"line {row['line']}" if row["line"] else "file"
        print(f"skipped: {where}: {safe(row['why'], one_line=True)}", file=sys.stderr)
    if result["skipped_count"] > 10:
        print(f"skipped: {result['skipped_count'] - 10} more (--json lists them)", file=sys.stderr)
    print(result["run"])


def _print_formats(as_json: bool) -> int:
    from dpo_diag.importers.formats.pair_table import COLUMNS
    from dpo_diag.importers.keys import STEP_KEYS
    from dpo_diag.importers.log_format import FORMATS
    from dpo_diag.records.metric_aliases import ALIASES
    from dpo_diag.styled import fitted

    forms = sorted(FORMATS.values(), key=lambda f: f.name)
    if as_json:
        document = {
            "formats": [
                {
                    "name": f.name,
                    "what": f.description,
                    "trainers": list(f.trainers),
                    "file_name": f.file_name,
                    "example": f.example or None,
                }
                for f in forms
            ],
            "names": [a._asdict() for a in ALIASES],
            "step_keys": list(STEP_KEYS),
            "next": after_formats(),
        }
        print(to_json(document))
        return 0
    print("Formats (--as NAME):")
    print(_whole(("format", "what", "written by"), [(f.name, f.description, ", ".join(f.trainers)) for f in forms]))
    print(
        fitted(
            "\nNames (a train/ or eval/ prefix sets the split; eval_<set>_<name> is the set's own split eval_<set>):"
        )
    )
    print(_whole(("trainer", "version", "source", "ours", "meaning"), ALIASES))
    print(fitted(f"\nStep columns, best first: {', '.join(STEP_KEYS)}"))
    print(fitted(f"Generic table (--as pairs): {COLUMNS}"))
    say_next(after_formats())
    return 0


def _whole(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of texts that are never cut: of a file as wide as they are, on a terminal each row wrapped by itself."""
    if not sys.stdout.isatty():
        return table(header, rows, 400)
    from dpo_diag.styled import wrap

    width = terminal_width() - 2
    told = (wrap(safe(" | ".join(str(cell) for cell in row if cell), one_line=True), width) for row in (header, *rows))
    return "\n".join("\n  ".join(lines) for lines in told)
