"""W&B runs: the offline file (run-<id>.wandb) through `wandb leet inspect`, or a run of the server by its path.

`wandb leet inspect --json` is the client's own, supported reader: it passes over damaged blocks, says so, and knows the
format of its version (0.31 removed the Python one). Histories are keyed by W&B's own step, a counter of log calls: the
training step is `train/global_step` where it is logged. NaN and infinities come back as strings. A key that stands
twice in one record (no client of W&B's writes one) is not told: its reader, and its server's client, hand on the last.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.extras import install_hint, require
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import choose
from dpo_diag.records.row_files import BadRow, as_row
from dpo_diag.records.text_files import Skipped


def read_wandb(path: Path, options: Options) -> Parsed:
    """Read a .wandb file, a folder that holds one (`wandb/`, `offline-run-...`), `wandb:ID`, or `entity/project/run`.

    Raises:
        DiagError: no run there, or several and none named with `--run`.
    """
    if not path.exists():
        text = str(path)
        if match := re.fullmatch(r"wandb:/{0,2}([\w-]+)", text):
            return _read_file(_run_file(Path.cwd(), match.group(1)), options)
        return _read_server(text, options)
    return _read_file(path if path.is_file() else _run_file(path, options.run), options)


def _run_file(folder: Path, run: str | None) -> Path:
    patterns = ("*.wandb", "*/*.wandb", "wandb/*/*.wandb")
    files = sorted({p.resolve() for pattern in patterns for p in folder.glob(pattern)})
    if not files:
        raise DiagError("no W&B run", where=folder, got="no .wandb file", hint="name the .wandb file", usage=True)
    ids = [p.stem.removeprefix("run-") for p in files]
    if run is not None:  # a run's folder and its file's whole name stand for its id
        run = next((i for i, p in zip(ids, files, strict=True) if run in (p.stem, p.parent.name)), run)
    return files[ids.index(choose(ids, run, folder))]


def _read_file(file: Path, options: Options) -> Parsed:
    parsed = Parsed.of("wandb", [file], options)
    parsed.store.may_fill = False
    config: dict[str, Any] = {}
    for number, record in enumerate(_records(file, parsed.skipped), start=1):
        if "history" in record:
            parsed.n_rows += 1
            row, step = as_row(record["history"].get("item", {})), record["history"].get("step")
            if isinstance(row, BadRow):
                parsed.skipped.add(number, str(row))
                continue
            _add(parsed, row, number, step.get("num", 0) if isinstance(step, dict) else None)
            continue
        parsed.skipped.add_repeated(record, number)
        if "config" in record:
            config.update(record["config"].get("update", {}))
        elif "run" in record:
            run = record["run"]
            config.update(run.get("config", {}).get("update", {}))
            parsed.run = run.get("run_id")
            names = {"run_id": run.get("run_id"), "run_name": run.get("display_name")}
            parsed.details.update({key: name for key, name in names.items() if name})
    return _finished(parsed, options, config, f"{file.name}: config")


def _records(file: Path, skipped: Skipped) -> Iterator[dict[str, Any]]:
    """The file's records as the W&B client prints them; what it passes over is reported."""
    with file.open("rb") as opened:
        if (start := opened.read(4)) != b":W&B":
            raise DiagError("not a W&B file", where=file, got=start, expected="a file that begins with :W&B")
    require("wandb", "reading a .wandb file")
    # -P: no module of the working directory stands in for wandb.
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(file.resolve())]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=messages, env=environment, encoding="utf-8", errors="replace"
        ) as process,
    ):
        for line in process.stdout or ():
            yield parse_json(line)
        status = process.wait()
        messages.seek(0)
        lines = [text.strip().removeprefix("wandb leet inspect: ") for text in messages if text.strip()]
    if status:
        raise DiagError(
            "wandb cannot read the file", where=file, got=lines[-1] if lines else f"exit status {status}",
            hint=f"{install_hint('wandb')} --upgrade",
        )  # fmt: skip
    for text in lines:
        skipped.add(None, text)


def _add(parsed: Parsed, row: Mapping[str, Any], number: int, step: int | None) -> None:
    """Take a history row without its tables and images. Keys are sorted: the order of a log call says nothing."""
    plain = {k: v for k, v in sorted(row.items()) if v is not None and not isinstance(v, (dict, list))}
    parsed.store.add(plain, number, step)


def _finished(parsed: Parsed, options: Options, config: Mapping[str, Any], where: str) -> Parsed:
    parsed.facts.merge(facts_from_mapping(config, where))
    own = {str(b.step_key) for b in parsed.store.filled()}
    if own == {"_step"}:
        parsed.notes.append("no global step is logged: W&B's own step (a counter of log calls) stands for it")
    elif "_step" in own:
        parsed.notes.append(
            "some rows have no global step: W&B's own step (a counter of log calls) stands for it there"
        )
    return parsed.with_steps(options)


def _read_server(text: str, options: Options) -> Parsed:
    """A run of the server: `entity/project/run`, also as a wandb: path or a URL of the run's page."""
    where = re.sub(r"^(wandb:/{0,2}|https?:/{1,2}[^/]+/)", "", text)
    parts = [p for p in where.split("?")[0].split("/") if p and p != "runs"]
    if len(parts) != 3:
        raise DiagError("not the path of a W&B run", got=text, expected="entity/project/run", usage=True)
    require("wandb", "reading a run of the W&B server")
    import wandb

    parsed = Parsed.of("wandb", [Path(where)], options)
    parsed.store.may_fill = False
    try:
        run = wandb.Api().run("/".join(parts))
        for number, row in enumerate(run.scan_history(), start=1):
            parsed.n_rows += 1
            _add(parsed, row, number, None)
        config = dict(run.config)
        parsed.run = parts[2]
        parsed.details.update(run_id=parts[2], run_name=str(getattr(run, "name", "") or ""))
    except Exception as error:  # the client raises its own, requests' and plain errors
        raise DiagError(
            "W&B did not give the run",
            where=where,
            got=f"{type(error).__name__}: {str(error)[:120]}",
            hint="check WANDB_BASE_URL and WANDB_API_KEY, or import the offline run's folder",
        ) from error
    return _finished(parsed, options, config, "W&B config")


def is_run_path(text: str) -> bool:
    """`entity/project/run`, also with a wandb: prefix or as a URL; asked where no such file exists."""
    is_address = text.startswith(("wandb:", "https:/"))  # Path() has made one slash of two
    return is_address or re.fullmatch(r"[\w.-]+/[\w.-]+/[\w.-]+", text) is not None


def _is_wandb_folder(folder: Path) -> bool:
    """Runs of W&B and no training's own folder, whose trainer_state.json holds more than W&B was sent."""
    if (folder / "trainer_state.json").exists() or any(folder.glob("checkpoint-*")):
        return False
    return any(any(folder.glob(p)) for p in ("*.wandb", "offline-run-*/*.wandb", "wandb/*run-*/*.wandb"))


register(
    LogFormat(
        name="wandb",
        description="W&B offline run (run-<id>.wandb or its folder), or entity/project/run",
        trainers=("any",),
        file_name="run-abc123.wandb",
        order=10,
        why="begins with bytes that no other file begins with",
        sniff=lambda head: head.raw.startswith(b":W&B"),
        read=read_wandb,
        rounding=0,
        reads_folders=True,
        sniff_folder=_is_wandb_folder,
    )
)
