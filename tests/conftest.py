"""Shared by all tests: no network, one thread, the folder with real data where there is one."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.table import count

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# The key with which a user signs runs is made in here.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="dpo-diag-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

try:
    from absl import logging as absl_logging
except ImportError:  # it comes with tensorboard
    pass
else:
    # absl's handler keeps the stderr of its first import, here a file of pytest's. Hydra closes all handlers when it
    # sets up its log, and absl's closes its stream with it unless that is stderr itself.
    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference pairs and logs, which the project does not ship; absent on most machines."""
    folder = Path(os.environ.get("DPO_DIAG_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set DPO_DIAG_SHARED_DATA to a folder that holds it")
    return folder


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`fault("SIGKILL inside a checkpoint write", tried=12, lost=0)`: one row of the table of faults (see `count`)."""
    return partial(count, record_property)
