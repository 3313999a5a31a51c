from __future__ import annotations

from pathlib import Path

import pytest

from tests.review.builders import make_run


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")
