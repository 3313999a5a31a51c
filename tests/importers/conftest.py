"""Import something into a temporary run folder and open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import Run, load_run
from dpo_diag.importers import Options, import_path
from tests.declared import assert_declared

Importing = Callable[..., tuple[dict[str, Any], Run]]


@pytest.fixture
def imported(tmp_path: Path) -> Importing:
    """import_path into tmp_path, as (result, run)."""
    count = 0

    def do(path: Any, as_name: str | None = None, **options: Any) -> tuple[dict[str, Any], Run]:
        nonlocal count
        count += 1
        result = import_path(path, tmp_path / f"run{count}", as_name, Options(**options))
        run = load_run(result["run"])
        assert_declared(run)
        return result, run

    return do
