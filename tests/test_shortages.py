"""What a machine ran out of is told as such; what was only met on the way is not taken for the reason."""

from __future__ import annotations

import errno

from dpo_diag.shortages import shortage


def _while_handling(met: Exception, raised: Exception) -> Exception:
    try:
        try:
            raise met
        except Exception:
            raise raised  # noqa: B904  (the point)
    except Exception as error:
        return error


def test_a_permission_met_on_the_way_is_not_the_reason() -> None:
    """A mistake of our own while a cache that may not be read was handled stays a mistake; a full disk stays one."""
    refused = PermissionError(errno.EACCES, "Permission denied", "/home/x/.cache")
    assert shortage(_while_handling(refused, TypeError("a mistake"))) is None
    assert shortage(OSError(errno.EPERM, "Operation not permitted")) is None
    assert str(shortage(refused)).startswith("permission denied; in /home/x/.cache")
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    assert str(shortage(_while_handling(full, RuntimeError("cannot write")))) == (
        "the disk is full; in runs/a; hint: make room"
    )
