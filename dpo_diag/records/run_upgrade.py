"""A run.json of schema 1.0 in the form of this version, so that nothing else has to know how it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, has_no_reference
from dpo_diag.records.inferred import infer
from dpo_diag.records.run_info import RunInfo, SourceInfo
from dpo_diag.records.splits import role_from_name
from dpo_diag.records.typed_json import Tolerance, from_document

_SOURCE_FIELDS = {f.name for f in dataclasses.fields(SourceInfo)}


def read_info(document: Mapping[str, Any], where: str | Path, history: Callable[[], pd.DataFrame]) -> RunInfo:
    """run.json of any version that this one reads, typed.

    Args:
        where: the file, for errors.
        history: the run's history rows; asked only for a run of schema 1.0 that does not say all.

    Raises:
        DiagError: a field of the wrong type (in a run of schema 1.0, which declared no types, it counts as unknown).
    """
    is_old = str(document.get("schema_version")) == "1.0"
    document = upgrade(document, history) if is_old else {**document, **_loss(document)}
    known = {f.name for f in dataclasses.fields(RunInfo)}
    other = {k: document.pop(k) for k in [k for k in document if k not in known]}
    if other:
        document["other"] = {**document.get("other", {}), **other}
    return from_document(RunInfo, document, where, Tolerance.MISFITS if is_old else Tolerance.UNKNOWN_FIELDS)


def upgrade(document: Mapping[str, Any], history: Callable[[], pd.DataFrame]) -> dict[str, Any]:
    """The document of a run of schema 1.0 as schema 1.1 writes it.

    Schema 1.0 named no roles of splits and left beta, sums or means, and reference-free losses to whoever read the run.

    Args:
        history: the run's history rows; asked only where the document does not say what they can tell.
    """
    new = dict(document)
    loss = new.pop("loss", None)
    new |= _old_loss(loss if isinstance(loss, Mapping) else {})
    reduction = new.pop("logps_reduction", None)
    new["logps"] = reduction
    new["source"] = _source(document.get("source"))
    names = loss.get("types") if isinstance(loss, Mapping) else None
    named = [str(name) for name in names] if isinstance(names, (list, tuple)) else []
    new["reference_free"] = has_no_reference(named)
    if new.get("loss") is None or reduction is None:
        inferred = infer(history())
        new["logps"] = reduction or inferred.logps
        new["reference_free"] = new["reference_free"] or inferred.reference_free
        if new.get("loss") is None:
            new["beta"] = new.get("beta") or inferred.beta
            new["loss_like"] = inferred.loss_like
    model = new.get("model")
    if isinstance(model, Mapping):
        adapter = model.get("peft") or model.get("adapter")
        if isinstance(adapter, Mapping):
            new["model"] = {**model, "adapter": {"type": adapter.get("peft_type"), **adapter}}
    data = new.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("splits"), Mapping):
        new["data"] = {k: v for k, v in data.items() if k != "splits"}
        new["splits"] = {
            str(name): {**facts, "role": role_from_name(str(name))}
            for name, facts in data["splits"].items()
            if isinstance(facts, Mapping)
        }
    return new


def _loss(document: Mapping[str, Any]) -> dict[str, Any]:
    """The loss; one whose kind is not registered here (a plugin's) is no reason to refuse the run."""
    if not isinstance(document.get("loss"), Mapping):
        return {}
    try:
        return {"loss": LossSpec.from_dict(document["loss"])}
    except (DiagError, TypeError, ValueError) as error:
        return {"loss": None, "loss_reason": f"run.json's loss is not understood: {error}"}


def _old_loss(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields about the loss: schema 1.0 held a LossSpec, or `not_applicable` beside what was known."""
    if not document:
        return {"loss": None, "loss_reason": "the run does not say which loss it used"}
    if "not_applicable" in document:
        names = document.get("types")
        beta = document.get("beta")
        return {
            "loss": None,
            "loss_reason": str(document["not_applicable"]),
            "loss_names": [str(n) for n in names] if isinstance(names, (list, tuple)) else [],
            "beta": beta if isinstance(beta, (int, float)) and beta > 0 else None,
        }
    return _loss({"loss": document})


def _source(document: Any) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        return {}
    source = {k: v for k, v in document.items() if k in _SOURCE_FIELDS}
    source["logps_why"] = document.get("logps_reduction_why")
    skipped = document.get("skipped")
    if isinstance(skipped, int):
        source |= {"skipped": [], "skipped_count": skipped}
    elif isinstance(skipped, list):
        source["skipped_count"] = len(skipped)
    source["details"] = {k: v for k, v in document.items() if k not in _SOURCE_FIELDS and k != "logps_reduction_why"}
    return source
