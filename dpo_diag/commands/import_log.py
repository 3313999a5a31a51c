"""`dpo-diag import PATH [PATH ...]`: turn another trainer's log or sums into a run folder."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `dpo-diag import`."""
    parser.add_argument(
        "path", nargs="*", help="log, archive, checkpoint or output folder, W&B run; several of one run"
    )
    parser.add_argument("--out", type=Path, help="run folder to write (default runs/imported/NAME)")
    parser.add_argument("--as", dest="as_name", metavar="NAME", help="format; recognised if absent (see --formats)")
    parser.add_argument("--formats", action="store_true", help="print the formats and the table of names, and stop")
    parser.add_argument("--loss", help="loss type, or several joined by commas, e.g. sigmoid or sigmoid,sft")
    parser.add_argument("--loss-weights", help="one factor per loss type, joined by commas")
    parser.add_argument("--beta", type=float, help="beta of the loss")
    parser.add_argument("--label-smoothing", type=float, help="label smoothing; with sigmoid this is cDPO")
    parser.add_argument("--logps", choices=("sum", "mean"), help="logged log-probs are token sums or token means")
    parser.add_argument("--trainer", help="trainer that wrote the log, where it is not recognised (trl, openrlhf, ...)")
    parser.add_argument("--trainer-version", help="its version, e.g. 0.12.0")
    parser.add_argument("--logging-steps", type=int, help="optimizer steps between two rows of a log without steps")
    parser.add_argument("--split", help="split of rows that name none (per-pair tables and scores; default eval)")
    parser.add_argument("--run", help="which run of a project that holds several (trackio, W&B)")
    parser.add_argument("--scores", type=Path, help="task scores: rows of step, name, value, n (JSON lines or CSV)")
    parser.add_argument(
        "--texts", type=Path, help="pairs (prompt, chosen, rejected) in the order of an array's prompts"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Import and say what was read; the last line is the run folder alone."""
    if args.formats:
        return _print_formats(args.json)
    if not args.path:
        raise DiagError("no file named", expected="dpo-diag import PATH [--out RUN]", usage=True)
    from dpo_diag.importers import Options, import_path

    options = Options(
        loss=tuple(t.strip() for t in args.loss.split(",") if t.strip()) if args.loss else (),
        loss_weights=_numbers(args.loss_weights),
        beta=args.beta,
        label_smoothing=args.label_smoothing,
        logps=args.logps,
        trainer=args.trainer,
        trainer_version=args.trainer_version,
        logging_steps=args.logging_steps,
        split=args.split,
        run=args.run,
        scores=args.scores,
        texts=args.texts,
    )
    _check(options)
    result = import_path(args.path, args.out, args.as_name, options)
    if args.json:
        print(json.dumps(_strict(result), ensure_ascii=False))
        return 0
    _print_result(result)
    return 0


def _numbers(text: str | None) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DiagError("--loss-weights are numbers", got=text, expected="e.g. 1,0.5", usage=True) from error


def _check(options: Any) -> None:
    from dpo_diag.losses import LOSSES

    unknown = [t for t in options.loss if t not in LOSSES]
    if unknown:
        raise DiagError("unknown loss type", got=unknown, expected=f"some of {tuple(LOSSES)}", usage=True)
    if options.beta is not None and not (options.beta > 0 and math.isfinite(options.beta)):
        raise DiagError("beta is a positive number", got=options.beta, usage=True)
    if options.label_smoothing is not None and not 0 <= options.label_smoothing < 0.5:
        raise DiagError("label smoothing lies in [0, 0.5)", got=options.label_smoothing, usage=True)
    if options.loss_weights and len(options.loss_weights) != len(options.loss):
        raise DiagError(
            "one weight per loss type", got=options.loss_weights, expected=f"{len(options.loss)} numbers", usage=True
        )
    if options.logging_steps is not None and options.logging_steps < 1:
        raise DiagError("--logging-steps is a positive number", got=options.logging_steps, usage=True)


def _strict(value: Any) -> Any:
    """NaN and infinities as null: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return value


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
        print(f"merged: {_shown(name)}")
    for note in result["notes"]:
        print(f"note: {_shown(note)}")
    for row in result["skipped"][:10]:
        where = f"line {row['line']}" if row["line"] else "file"
        print(f"skipped: {where}: {_shown(row['why'])}", file=sys.stderr)
    if result["skipped_count"] > 10:
        print(f"skipped: {result['skipped_count'] - 10} more (--json lists them)", file=sys.stderr)
    print(result["run"])


def _shown(text: object) -> str:
    """A source's own text on a terminal: control characters escaped."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def _print_formats(as_json: bool) -> int:
    from dpo_diag.importers.aliases import ALIASES, STEP_KEYS
    from dpo_diag.importers.formats import FORMATS
    from dpo_diag.importers.pair_table import MEASURES, REQUIRED

    if as_json:
        document = {
            "formats": [{"name": f.name, "what": f.what} for f in FORMATS],
            "names": [a._asdict() for a in ALIASES],
            "step_keys": list(STEP_KEYS),
        }
        print(json.dumps(document, ensure_ascii=False))
        return 0
    print("Formats (--as NAME):")
    for form in FORMATS:
        print(f"  {form.name:<13} {form.what}")
    print("\nNames (a train/ or eval/ prefix sets the split; eval_<set>_<name> is the set's own split eval_<set>):")
    rows = [("trainer", "version", "source", "ours", "meaning"), *ALIASES]
    widths = [max(len(str(row[i])) for row in rows) for i in range(4)]
    for row in rows:
        print("  " + "  ".join(f"{cell!s:<{w}}" for cell, w in zip(row[:4], widths, strict=True)) + f"  {row[4]}")
    print(f"\nStep columns, best first: {', '.join(STEP_KEYS)}")
    sides = ", ".join(f"<side>_{m}" for m in MEASURES)
    print(f"Generic table (--as pairs): {', '.join(REQUIRED)}, pair_id (or prompt, chosen, rejected); optional split, "
          f"ref_chosen_sum_logp, ref_rejected_sum_logp, score/NAME, {sides} (<side>: chosen, rejected)")  # fmt: skip
    return 0
