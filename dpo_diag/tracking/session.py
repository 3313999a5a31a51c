"""One run in all its trackers, live or later: what was sent is known, so that nothing is sent twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.records import Run
from dpo_diag.records.secrets import arguments_without_secrets
from dpo_diag.tracking.base import TRACKERS
from dpo_diag.tracking.findings import Findings, findings_of
from dpo_diag.tracking.outputs_table import outputs_table
from dpo_diag.tracking.safe import SafeTracker, make_tracker
from dpo_diag.tracking.sent import Sent, digest_of
from dpo_diag.tracking.webhook import is_wanted


def kinds_of(kind: str | Sequence[str] | None) -> list[str]:
    """The kinds that `tracking.kind` names: one, several, or none; each once."""
    named = [kind] if isinstance(kind, str) else list(kind or ())
    return [k for k in dict.fromkeys(str(n) for n in named) if k != "none"]


def live_kinds(kind: str | Sequence[str] | None) -> list[str]:
    """Those, and the webhook where the environment names one: alerts are for while a run goes on."""
    return list(dict.fromkeys([*kinds_of(kind), *(["webhook"] if is_wanted() else [])]))


@dataclass(frozen=True)
class Shown:
    """What a run has to show beside its scalars, with the hashes by which it is known to have been sent."""

    outputs: pd.DataFrame | None
    findings: Findings
    hashes: Mapping[str, str]

    @classmethod
    def of(cls, run: Run) -> Shown:
        """By the records, findings.json and report.html as they lie there."""
        outputs, findings, hashes = run.outputs if run.has("outputs") else None, findings_of(run), {}
        if outputs is not None:
            hashes["outputs"] = digest_of(outputs_table(outputs))
        if findings:
            hashes["findings"] = digest_of(findings.summary, findings.checks, findings.pairs, findings.report)
        return cls(outputs, findings, hashes)


def is_sent(run: Run, kind: str) -> bool:
    """Whether a tracker holds all that the run has to show: its history, its answers, and what was found in it."""
    sent = Sent.read(run.path, kind)
    if not (sent.history or sent.hashes) or len(sent.new_rows(run)):
        return False
    return not any(sent.is_new(name, digest) for name, digest in Shown.of(run).hashes.items())


class Session:
    """`start`, then `log` and `alert` while the run goes on, then `close`; a tracker that fails warns once.

    Args:
        kinds: names of trackers.
        folder: the run folder.
        earlier: kind -> what its start returned when this folder was tracked before (`records.tracked`).
        options: of `make_tracker`.

    Raises:
        DiagError: no tracker of that name is registered.
    """

    def __init__(
        self, kinds: Sequence[str], folder: Path, earlier: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
    ) -> None:
        self.folder = folder
        before = earlier or {}
        for kind in kinds:
            TRACKERS[kind]
        self.trackers: dict[str, SafeTracker] = {
            kind: make_tracker(kind, earlier=before.get(kind), **options) for kind in kinds
        }
        self.sent = {kind: Sent.read(folder, kind) if before.get(kind) else Sent() for kind in kinds}

    def resumed_after(self, run: Run) -> None:
        """The run's records so far are what its trackers hold; to be said before a resumed training cuts them back."""
        for kind, tracker in self.trackers.items():
            if tracker.options.earlier:
                rows = self.sent[kind].new_rows(run)
                for step, name in zip(rows["step"].tolist(), rows["name"].tolist(), strict=True):
                    self.sent[kind].note(step, {name: 0.0})

    def start(self, config: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
        """Open the run everywhere; kind -> where it went, for run.json."""
        with arguments_without_secrets():  # clients write down how the process was called
            return {kind: tracker.start(config, name, self.folder) for kind, tracker in self.trackers.items()}

    @property
    def places(self) -> dict[str, dict[str, Any]]:
        """kind -> where the run went, as `start` returned it or as its end changed it."""
        return {kind: tracker.where for kind, tracker in self.trackers.items()}

    @property
    def failures(self) -> dict[str, list[str]]:
        """kind -> what failed, of the trackers that failed."""
        return {kind: tracker.failures for kind, tracker in self.trackers.items() if tracker.failures}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one optimizer step, to each tracker what it does not hold yet."""
        for kind, tracker in self.trackers.items():
            new = self.sent[kind].new(step, values)
            if new and tracker.log(step, new):
                self.sent[kind].note(step, new)

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """To every tracker that has alerts."""
        for tracker in self.trackers.values():
            tracker.alert(step, title, text, level)

    def send_rest(self, run: Run) -> None:
        """What of the run's history, answers and findings was not sent yet."""
        shown = Shown.of(run)
        for kind, tracker in self.trackers.items():
            sent = self.sent[kind]
            for step, part in sent.new_rows(run).groupby("step", sort=True, observed=True):
                values = dict(zip(part["name"], part["value"].astype(float), strict=True))
                epochs = part["epoch"].dropna()
                if len(epochs):
                    values |= sent.new(int(str(step)), {"train/epoch": float(epochs.iloc[-1])})
                if tracker.log(int(str(step)), values):
                    sent.note(int(str(step)), values)
            for name, digest in shown.hashes.items():
                if not sent.is_new(name, digest):
                    continue
                if name == "outputs" and shown.outputs is not None:
                    taken = tracker.log_outputs(shown.outputs)
                else:
                    taken = tracker.log_findings(shown.findings)
                if taken:
                    sent.hashes[name] = digest

    def close(self, status: str) -> None:
        """The end; what was sent is kept in the run folder for the next time."""
        for kind, tracker in self.trackers.items():
            started = tracker.started
            tracker.finish(status)
            if started:
                self.sent[kind].write(self.folder, kind)
