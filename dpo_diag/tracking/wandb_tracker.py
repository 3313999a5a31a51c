"""W&B: offline unless asked, one W&B run per training, resumed or not, even with several trainings in one process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.records.secrets import without_secrets
from dpo_diag.text import cut
from dpo_diag.tracking.base import CHECKS, OUTPUTS, PAIRS, REPORT, STEP, TRACKERS, TrackerOptions, inside
from dpo_diag.tracking.findings import Findings
from dpo_diag.tracking.outputs_table import outputs_table

SHARE_OF_START = 0.6
"""Of the start's time limit what the server may take; the rest is for going on offline."""


class WandbTracker:
    """Mirrors scalars against the optimizer step, outputs, pairs and checks as tables, the verdict as summary, the
    report as media. What is written offline is sent later with `wandb sync`. A server that at the start cannot be
    reached, refuses the key or does not answer costs one warning: the run goes on offline.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._run: Any = None
        self._folder = Path()

    def start(self, config: Mapping[str, Any], run_name: str, folder: Any) -> dict[str, Any]:
        """See `Tracker.start`; the W&B files lie in FOLDER/wandb."""
        require("wandb", "tracking with W&B")
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        mode, failed = self.options.mode, None
        if mode == "online":
            try:
                self._run = self._init(config, run_name, "online", self.options.start_timeout * SHARE_OF_START)
            except Exception as error:  # whatever is wrong with the server: what is written can still be sent later
                why = " ".join(str(error).split()).partition(" Consider increasing")[0]
                mode, failed = (
                    "offline",
                    f"W&B is not reached ({type(error).__name__}: {why}), so it is written offline",
                )
        if self._run is None:
            self._run = self._init(config, run_name, mode, self.options.start_timeout)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        place = inside(Path(self._run.dir).parent, self._folder)
        where = {
            "kind": "wandb",
            "mode": mode,
            "project": self.options.project,
            "entity": self._run.entity or self.options.entity if mode == "online" else self.options.entity,
            "name": run_name,
            "id": self._run.id,
            "url": self._run.url if mode == "online" else None,
            "folder": place,
            "folders": [*(f for f in self._earlier_folders() if f != place), place],
            "failed": failed,
        }
        # Of a run that is online, too: what a server that fails later does not take is written there.
        online = ["--no-skip-online"] if mode == "online" else []
        where["send"] = shlex.join(["wandb", "sync", *online, *(str(self._folder / f) for f in where["folders"])])
        return {k: v for k, v in where.items() if v is not None}

    def _earlier_folders(self) -> list[str]:
        """Those that were written offline and, as far as wandb's own marks say, not sent yet."""
        known = self.options.earlier.get("folders") or [self.options.earlier.get("folder") or ""]
        waiting = [str(f) for f in known if "offline-run" in str(f) and (self._folder / str(f)).is_dir()]
        return [f for f in waiting if not any((self._folder / f).glob("*.wandb.synced"))]

    def _init(self, config: Mapping[str, Any], run_name: str, mode: str, limit: float) -> Any:
        import wandb

        if mode == "online" and not _has_key():
            raise DiagError("no key", hint="wandb login, or WANDB_API_KEY")
        options, earlier = self.options, self.options.earlier
        # create_new: two trainings in one process would otherwise be merged, and a run that the user's own script has
        # open would be taken over. console off: a sweep's jobs share one console.
        return wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.run_group,
            job_type=options.job_type,
            tags=options.tags or None,
            name=run_name,
            dir=str(self._folder),
            config=without_secrets(dict(config)),
            mode=mode,  # type: ignore[arg-type]
            id=earlier.get("id"),
            resume="allow" if earlier.get("id") and mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                login_timeout=limit,
                init_timeout=limit,
                finish_timeout=options.finish_timeout,
            ),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`. Rows keep their own step; W&B's counter only orders the calls."""
        self._run.log({**values, STEP: step})

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """See `Tracker.log_outputs`; nothing without answers."""
        self._table(OUTPUTS, outputs_table(outputs))

    def log_findings(self, findings: Findings) -> None:
        """Verdict and best values in the summary, two tables, the page as media."""
        import wandb

        self._run.summary.update(findings.summary)
        self._table(CHECKS, findings.checks)
        self._table(PAIRS, findings.pairs)
        if findings.report is not None:
            self._run.log({REPORT: wandb.Html(str(findings.report), inject=False)})

    def _table(self, name: str, table: pd.DataFrame) -> None:
        import wandb

        if len(table):
            self._run.log({name: wandb.Table(dataframe=table, allow_mixed_types=True)})

    def adopt(self) -> bool:
        """See `Tracker`."""
        self._run = getattr(sys.modules.get("wandb"), "run", None)
        return self._run is not None

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """W&B's own alert, which it mails or sends to Slack as the user has set it there."""
        self._run.alert(title=cut(title, 63), text=text, level=level.upper())

    def abandon(self) -> None:
        """Ends wandb's service: it would outlive the process, and hold whatever reads its output (`| tee log`)."""
        import wandb

        wandb.setup()._connection._proc._process.kill()  # type: ignore[union-attr]

    def finish(self, status: str = "finished") -> None:
        """See `Tracker.finish`; any status but finished is a failed run in W&B.

        Raises:
            TimeoutError: the server did not take everything in time; what is left lies in the run folder.
        """
        run, self._run = self._run, None
        if run is None:
            return
        run.finish(exit_code=0 if status == "finished" else 1)
        if run._finish_timed_out:
            raise TimeoutError(f"W&B did not take everything within {self.options.finish_timeout:g} s")


def _has_key() -> bool:
    """Whether wandb knows a key; `wandb.init` would ask for one, and wait for the answer."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    return wbauth.authenticate_session(host=host, source="dpo-diag", prompt=False) is not None


TRACKERS.add("wandb", WandbTracker)
