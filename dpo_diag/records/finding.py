"""One line of the doctor, about this machine or about a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands (ok | warn | fail), what was found, what to do."""

    name: str
    outcome: str
    found: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)
