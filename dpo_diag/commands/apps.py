"""Entry points of the Hydra apps: what they need is an extra, and its absence is one line; help needs none of it."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress

from dpo_diag.commands.app_help import asks_for_help, help_text
from dpo_diag.extras import of_import_error
from dpo_diag.stopping import exit_status, sigterm_interrupts, word


def _run(name: str) -> int:
    if asks_for_help(sys.argv[1:]):
        with suppress(BrokenPipeError):  # the reader (head, less) went away
            print(help_text(f"dpo-{name}"), flush=True)
            return 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 0
    try:
        with sigterm_interrupts():  # from the first moment: what a training needs takes seconds to import
            return int(importlib.import_module(f"dpo_diag.commands.{name}").main())
    except KeyboardInterrupt as stop:
        print(f"dpo-{name}: {word(stop)}", file=sys.stderr)
        return exit_status(stop)
    except ModuleNotFoundError as error:
        absent = of_import_error(error, f"dpo-{name}")
        if absent is None:
            raise
        print(f"dpo-{name}: {absent}", file=sys.stderr)
        return 1


def train() -> int:
    """dpo-train"""
    return _run("train")


def score() -> int:
    """dpo-score"""
    return _run("score")


def generate() -> int:
    """dpo-generate"""
    return _run("generate")


if __name__ == "__main__":
    sys.exit(_run(sys.argv.pop(1)))
