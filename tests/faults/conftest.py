from collections.abc import Callable
from functools import partial

import pytest

from tests.faults.table import count


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`fault("SIGKILL inside a checkpoint write", tried=12, lost=0)`: one row of the table (see `count`)."""
    return partial(count, record_property)
