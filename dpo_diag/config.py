"""The configuration tree: where conf/ lies. (The dataclasses behind it follow below.)"""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"conf/ is neither in {package} nor beside it; reinstall dpo-diag")
