"""One made-up run for all tests of the report, read only."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import make_explanation, make_run

from dpo_diag.diagnosis import Explanation


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="session")
def made_explanation(made_run: Path) -> Explanation:
    return make_explanation(made_run)
