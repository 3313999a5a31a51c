"""Building a folder once: keyed by the hash of all that determines it, whole or absent, paid by one of many jobs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError

META = "meta.json"


def content_key(determinants: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of `determinants` as canonical JSON."""
    text = json.dumps(determinants, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / META)
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The meta of a finished folder, or None when the folder is absent, unfinished or not what its meta says."""
    try:
        meta = parse_json((folder / META).read_text(encoding="utf-8"))
        whole = meta["files"] == _file_hashes(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if whole else None


def build_once(
    root: str | os.PathLike[str],
    name: str,
    determinants: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    *,
    timeout: float = 3600.0,
) -> tuple[Path, dict[str, Any], bool]:
    """The folder `root/name-<key>`, built if it is not there.

    `build` fills a temporary folder and returns JSON-able facts about it. The folder is renamed into place when it is
    whole, so a killed job leaves only a temporary folder, which the next job removes. A lock that the system frees
    with its process makes jobs that run side by side wait for the first one and then read. A folder whose files do
    not match their hashes (a full disk, an edit) is built again.

    Returns:
        (folder, meta, hit): meta has "determinants", "facts" and "files"; hit says that nothing was built.

    Raises:
        DiagError: the root cannot be written, or the lock was not free within `timeout` seconds.
    """
    from filelock import FileLock, Timeout

    root = Path(root)
    key = content_key(determinants)
    final = root / f"{name}-{key}"
    if (meta := read_meta(final)) is not None:
        return final, meta, True
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}-{key}.lock")
        with lock.acquire(timeout=timeout):
            if (meta := read_meta(final)) is not None:
                return final, meta, True
            for stale in root.glob(f".{name}-{key}.tmp-*"):  # we hold the lock: whoever made these is gone
                shutil.rmtree(stale, ignore_errors=True)
            temporary = root / f".{name}-{key}.tmp-{uuid.uuid4().hex[:8]}"
            temporary.mkdir()
            try:
                facts = dict(build(temporary))
                meta = {"determinants": dict(determinants), "facts": facts, "files": _file_hashes(temporary)}
                text = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n"
                (temporary / META).write_text(text, encoding="utf-8")
                if final.exists():
                    shutil.rmtree(final)
                os.replace(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except Timeout:
        raise DiagError(
            "another job holds the lock of this cache entry",
            where=root / f".{name}-{key}.lock",
            expected=f"free within {timeout:.0f} s",
            hint="wait for it, or end that job",
        ) from None
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise DiagError(
            "the cache folder cannot be written", where=root, got=error.strerror, hint="choose another cache folder"
        ) from None
    return final, meta, False
