"""How a command line is written and said, and which one a run keeps.

A line is what a shell takes as it stands: paths with blanks stand in quotes.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TextIO

from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.records.checksums import read_yaml

_PLAIN_VALUE = re.compile(r"[\w/.\-*:%+@]+", re.ASCII)
"""What a Hydra override takes without quotes."""
_READ_AS_ELSE = re.compile(r"null|true|false|[+-]?(nan|inf|[\d._]+(e[+-]?[\d_]+)?)", re.ASCII | re.IGNORECASE)
"""What Hydra takes for no text without quotes: nothing, a truth value, a number (1_000 too)."""
_APPS = {"config": "dpo-train", "score": "dpo-score", "generate": "dpo-generate"}
"""Hydra's primary configuration -> the command."""


def say_next(commands: Sequence[str], stream: TextIO | None = None) -> None:
    """One line for each; on standard error where standard output ends with the run folder."""
    for line in commands:
        print(f"next: {line}", file=stream or sys.stdout, flush=True)


def line(*words: str | os.PathLike[str]) -> str:
    """Words as a shell takes them: quoted where they hold a blank or what a shell reads."""
    return shlex.join([os.fspath(word) for word in words])


def override(key: str, value: str | os.PathLike[str]) -> str:
    """KEY=VALUE for Hydra, whose quotes are other ones than the shell's; the value is read as this very text."""
    text = os.fspath(value)
    if _PLAIN_VALUE.fullmatch(text) and not _READ_AS_ELSE.fullmatch(text):
        return f"{key}={text}"
    literal = re.sub(r"(?<!\\)(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(?<!\\)\\+$", r"\g<0>\g<0>", re.sub(r"(?<!\\)(\\*)'", r"\1\1\\'", literal))
    return f"{key}='{escaped}'"


def called(run: Run) -> tuple[str | None, list[str], str | None]:
    """The command that a run keeps, its arguments and where it was called: a measurement's stands in run.json, a
    training's in Hydra's folder; (None, [], None) where it keeps none."""
    call = run.info.call
    if call is not None and call.words[:1] and call.words[0] in _APPS.values():
        return call.words[0], list(call.words[1:]), call.cwd
    try:
        hydra = (read_yaml(run.path / ".hydra" / "hydra.yaml") or {})["hydra"]
        given = read_yaml(run.path / ".hydra" / "overrides.yaml") or []
        app = _APPS[hydra["job"]["config_name"]]
        return app, [str(word) for word in given], (hydra.get("runtime") or {}).get("cwd")
    except (OSError, DiagError, KeyError, TypeError):
        return None, [], None


def elsewhere(cwd: str | None) -> str | None:
    """Where relative paths of a kept command begin, if that is another folder of this machine than where we are."""
    return cwd if cwd is not None and os.path.isdir(cwd) and not os.path.samefile(cwd, os.curdir) else None


def from_there(folder: str | None, command: str) -> str:
    """A command's line that works from where we are; `folder`: see `elsewhere`."""
    return command if folder is None else f"{line('cd', folder)} && {command}"
