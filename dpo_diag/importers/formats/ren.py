"""Ren & Sutherland's learning dynamics (arXiv 2407.10490): a float array (evaluation, metric, prompt) of response
log-prob sums, json lines whose keys name the metrics (a line an evaluation), and a pairs file aligned with the prompts.

Evaluation 0 is the reference. There are no token counts; the bytes are those of the responses' texts. The other
responses' log-probs (paraphrases, irrelevant, random) become history, the array's means. `argmax_prob_logits` is the
greedy log-prob as an older version of that code computed it, whose level differs between runs: history only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.pair_records import fill_bytes, pair_records
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.records.pair_id import make_pair_id
from dpo_diag.records.row_files import BadRow, parse_row
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.text_files import Skipped, head_of, lines

FloatArray = npt.NDArray[np.float64]
_NAME = re.compile(r"logps_(train|eval\w*|test)/(.+)")
GREEDY = "argmax_prob_logits"


def read_ren(path: Path, options: Options) -> Parsed:
    """Read the folder (or the array, with its neighbours).

    Raises:
        DiagError: no three-dimensional float array, or no json lines whose number of keys is the array's second size.
    """
    folder = path if path.is_dir() else path.parent
    parsed = Parsed.of("ren", [], options, "eric-mitchell/dpo")
    parsed.version = options.trainer_version or "2023"
    file, array = _array(path, folder, parsed.skipped)
    evaluations, metrics, prompts = array.shape
    keys_file, keys, means = _keys(folder, evaluations, metrics)
    split, columns = _columns(keys)
    if not all(side in columns for side in SIDES):
        raise DiagError("no chosen and rejected among the metrics", where=keys_file, got=keys[:12])
    texts_file, texts = _texts(folder, prompts, parsed.skipped, options.texts)
    parsed.files = [f for f in (file, keys_file, texts_file) if f]
    split = options.split or split
    ids = _pair_ids(texts, prompts, parsed)
    frame = pd.DataFrame(
        {
            "step": np.repeat(np.arange(evaluations), prompts),
            "split": split,
            "pair_id": np.tile(np.array(ids, dtype=object), evaluations),
            **{f"{side}_sum_logp": array[:, columns[side], :].ravel() for side in SIDES},
        }
    )
    by_pair = {(split, i): t for i, t in zip(ids, texts, strict=True)} if texts else {}
    fill_bytes(frame, by_pair, parsed)
    parsed.pairs = pair_records(frame, parsed)
    if texts:
        parsed.texts = pd.DataFrame([{"split": split, "pair_id": i, **t} for i, t in zip(ids, texts, strict=True)])
    parsed.history = _history(array, keys, split)
    parsed.steps_from = "evaluation numbers (the array holds no steps)"
    parsed.details["reference_from"] = "evaluation 0"
    if GREEDY in keys:
        parsed.notes.append(f"{GREEDY} is an older version's greedy log-prob: history only, levels differ between runs")
    _check_means(array, keys, means, parsed)
    parsed.n_rows = parsed.n_read = evaluations * prompts
    return parsed


def _array(path: Path, folder: Path, skipped: Skipped) -> tuple[Path, FloatArray]:
    candidates = [path] if path.is_file() else sorted(folder.glob("*.npy"))
    tried = []
    for file in candidates:
        try:
            # Mapped: a header that claims more than the file holds is refused before anything is allocated.
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header raises whatever its parser raises (SyntaxError, TokenError, ...)
            why = " ".join(str(error).split())[:80] or type(error).__name__
            skipped.add(None, f"not an array: {why}", file=file.name)
            tried.append(f"{file.name}: {why}")
            continue
        if array.ndim == 3 and np.issubdtype(array.dtype, np.floating) and array.size:
            return file, np.array(array, dtype=np.float64)
        tried.append(f"{file.name}: shape {array.shape}, {array.dtype}")
    raise DiagError(
        "no array of log-probs",
        where=path,
        got="; ".join(tried)[:200] or "no .npy",
        expected="floats (evaluation, metric, prompt)",
    )


def _keys(folder: Path, evaluations: int, metrics: int) -> tuple[Path, list[str], list[Mapping[str, Any]]]:
    """The json lines whose rows have one key per metric."""
    for file in _json_files(folder):
        rows = _first_rows(file, evaluations)
        if rows and len(rows[0]) == metrics and any(_NAME.match(k) for k in rows[0]):
            return file, list(rows[0]), rows
    raise DiagError(
        "no json lines name the metrics",
        where=folder,
        expected=f"a .json or .jsonl file with {metrics} keys a line, e.g. logps_eval_.../chosen",
        hint="put it beside the array",
    )


def _json_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and ".json" in p.name)


def _first_rows(file: Path, limit: int) -> list[Mapping[str, Any]]:
    """The first rows of a file of JSON lines, {} for one that cannot be read; none of any other file."""
    if head_of(file, 64).lstrip()[:1] != b"{":
        return []
    values = (parse_row(text) for _, text in lines(file, Skipped()) if text.strip())
    return [{} if isinstance(row, BadRow) else row for row in islice(values, limit)]


def _columns(keys: list[str]) -> tuple[str, dict[str, int]]:
    """(split, response -> index) from names such as logps_eval_prob_train/chosen."""
    split, columns = "eval", {}
    for index, key in enumerate(keys):
        if match := _NAME.match(key):
            columns[match.group(2)] = index
            split = match.group(1)
    return split, columns


def _texts(
    folder: Path, prompts: int, skipped: Skipped, named: Path | None
) -> tuple[Path | None, list[dict[str, str]] | None]:
    """The pairs file: as many rows as prompts, each with prompt, chosen and rejected."""
    for file in [named] if named is not None else _json_files(folder):
        rows = _first_rows(file, prompts + 1)
        if rows and all(isinstance(rows[0].get(k), str) for k in ("prompt", *SIDES)):
            if len(rows) != prompts:
                skipped.add(None, f"{len(rows)} pairs for {prompts} prompts: texts left out", file=file.name)
                continue
            for place, row in enumerate(rows, start=1):
                if not row:
                    skipped.add(place, "a pair that cannot be read: its texts are left out", file=file.name)
            return file, [{k: str(r.get(k, "")) for k in ("prompt", *SIDES)} for r in rows]
    return None, None


def _pair_ids(texts: list[dict[str, str]] | None, prompts: int, parsed: Parsed) -> list[str]:
    """Content hashes; without texts the prompt's number. A pair that occurs twice gets its number behind the hash."""
    if texts is None:
        parsed.notes.append(
            "no pairs file with as many rows as prompts: pairs are named by number, bytes are not known"
        )
        return [f"prompt-{i:05d}" for i in range(prompts)]
    seen: set[str] = set()
    ids = []
    for i, text in enumerate(texts):
        pair_id = make_pair_id(text["prompt"], text["chosen"], text["rejected"])
        if pair_id in seen:
            pair_id = f"{pair_id}-{i}"
        seen.add(pair_id)
        ids.append(pair_id)
    return ids


def _history(array: FloatArray, keys: list[str], split: str) -> pd.DataFrame:
    """Means over prompts of every metric, NaN where any prompt's value is NaN (as the source has it)."""
    means = array.mean(axis=2)
    parts = []
    for index, key in enumerate(keys):
        match = _NAME.match(key)
        name = f"logps/{match.group(2)}" if match else f"older/{key}"
        parts.append(
            pd.DataFrame(
                {
                    "step": np.arange(len(array)), "split": split, "name": name, "value": means[:, index],
                    "weight": float(array.shape[2]), "derived": False,
                }
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _check_means(array: FloatArray, keys: list[str], rows: list[Mapping[str, Any]], parsed: Parsed) -> None:
    """The json lines hold the array's means: a difference means that the files belong to different runs."""
    off = 0
    for evaluation, row in enumerate(rows[: len(array)]):
        for index, key in enumerate(keys):
            written, mean = row.get(key), float(array[evaluation, index].mean())
            if isinstance(written, float) and math.isfinite(written) and math.isfinite(mean):
                off += abs(written - mean) > 1e-3 * max(1.0, abs(mean))
    if off or len(rows) != len(array):
        parsed.notes.append(f"the json lines differ from the array's means in {off} places, {len(rows)} lines")


register(
    LogFormat(
        name="ren",
        description="Ren & Sutherland: folder with an (eval, metric, prompt) .npy and its json lines",
        trainers=("eric-mitchell/dpo (arXiv 2407.10490)",),
        file_name="logp.npy",
        order=10,
        why="begins with bytes that no other file begins with",
        sniff=lambda head: head.raw.startswith(b"\x93NUMPY"),
        read=read_ren,
        rounding=0,
        reads_folders=True,
        sniff_folder=lambda folder: any(folder.glob("*.npy")),
    )
)
