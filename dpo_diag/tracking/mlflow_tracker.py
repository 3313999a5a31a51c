"""MLflow: the store that MLFLOW_TRACKING_URI names, else MLflow's own default in the working directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd

from dpo_diag.extras import require
from dpo_diag.records.secrets import without_secrets
from dpo_diag.tracking.base import CHECKS, OUTPUTS, PAIRS, TRACKERS, TrackerOptions, flat
from dpo_diag.tracking.findings import Findings
from dpo_diag.tracking.outputs_table import outputs_table

PARAM_CHARS, TAG_CHARS = 6000, 5000
"""What MLflow takes of a parameter's and of a tag's value."""
BATCH = 1000
"""Metrics that MLflow takes in one call."""
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""A server's own defaults are 7 retries of 120 s each."""


class MlflowTracker:
    """Mirrors scalars against the optimizer step; config as parameters, verdict as tags, best values as metrics, tables
    and the report as artifacts.

    It speaks to the store through a client of its own: a run that the user's script has open is left alone.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._client: Any = None
        self._id = ""
        self._step = 0

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """See `Tracker.start`; the project is the experiment."""
        require("mlflow", "tracking with MLflow")
        with _impatient():
            from mlflow import get_tracking_uri
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient()
            self._id = str(self.options.earlier.get("id") or "") or self._create(config, run_name)
            uri = str(get_tracking_uri())
            self._client.update_run(self._id, status="RUNNING")
        shown = without_credentials(uri)
        return {
            "kind": "mlflow",
            "project": self.options.project,
            "name": run_name,
            "id": self._id,
            "uri": shown,
            "show": f"mlflow ui --backend-store-uri {shown}",
        }

    def _create(self, config: Mapping[str, Any], run_name: str) -> str:
        experiment = self._client.get_experiment_by_name(self.options.project)
        project = experiment.experiment_id if experiment else self._client.create_experiment(self.options.project)
        options = self.options
        tags = {
            "dpo_diag.group": options.run_group,
            "dpo_diag.job_type": options.job_type,
            **dict.fromkeys(options.tags, ""),
        }
        given = {k: v for k, v in tags.items() if v is not None}
        run = self._client.create_run(project, run_name=run_name, tags=given)
        from mlflow.entities import Param

        named = {_key(k): str(v)[:PARAM_CHARS] for k, v in flat(without_secrets(dict(config))).items()}
        params = [Param(k, v) for k, v in named.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run.info.run_id, params=params[start : start + 100])
        return str(run.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        from mlflow.entities import Metric

        self._step, now = max(self._step, step), int(time.time() * 1000)
        metrics = [Metric(_key(name), float(value), now, step) for name, value in values.items()]
        with _impatient():
            for start in range(0, len(metrics), BATCH):
                self._client.log_batch(self._id, metrics=metrics[start : start + BATCH])

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """See `Tracker.log_outputs`; nothing without answers."""
        self._table(OUTPUTS, outputs_table(outputs))

    def log_findings(self, findings: Findings) -> None:
        """The summary's words as tags, its numbers as metrics of the last step, tables and page as artifacts."""
        self.log(self._step, {k: v for k, v in findings.summary.items() if not isinstance(v, str)})
        with _impatient():
            for name, words in findings.summary.items():
                if isinstance(words, str):
                    self._client.set_tag(self._id, _key(name).replace("/", "."), words[:TAG_CHARS])
            if findings.report is not None:
                self._client.log_artifact(self._id, str(findings.report))
        self._table(CHECKS, findings.checks)
        self._table(PAIRS, findings.pairs)

    def _table(self, name: str, table: pd.DataFrame) -> None:
        """As MLflow's own tables, a JSON file that its page draws; a table of the same name is replaced."""
        if len(table):
            with _impatient():
                document = table.to_json(orient="split", index=False, double_precision=15)
                self._client.log_text(self._id, document, f"{name}.json")

    def adopt(self) -> bool:
        """See `Tracker`."""
        client = sys.modules.get("mlflow")
        run = None if client is None else client.active_run()
        if run is not None:
            from mlflow.tracking import MlflowClient

            self._client, self._id = MlflowClient(), run.info.run_id
        return run is not None

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """A tag: MLflow has no alerts."""
        with _impatient():
            self._client.set_tag(self._id, f"alert.{title}.{step}", f"{level}: {text}"[:TAG_CHARS])

    def finish(self, status: str = "finished") -> None:
        """See `Tracker.finish`."""
        client, self._client = self._client, None
        if client is not None:
            ends = {"finished": "FINISHED", "interrupted": "KILLED"}
            with _impatient():
                client.set_terminated(self._id, status=ends.get(status, "FAILED"))


def _key(name: str) -> str:
    """As MLflow takes names: letters, digits and `_-. :/`."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)[:250]


@contextmanager
def _impatient() -> Iterator[None]:
    """Few and short attempts at a server, where the user has not said otherwise."""
    missing = {k: v for k, v in _IMPATIENT.items() if k not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            os.environ.pop(key, None)


def without_credentials(uri: str) -> str:
    """An address without the user and password in it.

    >>> without_credentials("https://me:secret@host/path")
    'https://host/path'
    """
    head, mark, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{head}{mark}{authority.rpartition('@')[2]}{slash}{path}"


TRACKERS.add("mlflow", MlflowTracker)
