"""`dpo-diag wandb-report`: a W&B report over tracked runs, as JSON or saved."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.text import to_json


def wandb_report(
    runs: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    entity: str | None = None,
    project: str | None = None,
    group: str | None = None,
    title: str = "Why the loss fell",
    save: bool = False,
    json: bool = False,
) -> int:
    """A W&B report over tracked runs: the story, loss against perplexity, the sweep, the answers.

    Args:
        runs: run folders, a multirun's folder, or a glob.
        entity: W&B team or user (default: the one that the runs were sent to).
        project: W&B project (default: the one that the runs were sent to).
        group: only runs of this W&B group.
        title: the report's title.
        save: save it to W&B and print its address.
        json: print its spec, which needs no network and no entity.
    """
    if save == json:
        raise DiagError("say what to do with the report", expected="--save, or --json for its spec", usage=True)
    from dpo_diag.diagnosis.sweep import sweep as collect
    from dpo_diag.diagnosis.sweep_jobs import overrides
    from dpo_diag.records.tracked import tracked_places
    from dpo_diag.report.wandb_report import Told, build_report, save_report, spec_of

    opened = [load_run(path) for path in collect(runs).runs["run"]]
    if not opened:
        raise DiagError("no run", where=", ".join(map(str, runs)), expected="run folders or a glob", usage=True)
    places = [tracked_places(run.meta.get("tracking")).get("wandb", {}) for run in opened]
    entity = entity or next((p["entity"] for p in places if p.get("entity")), None)
    if save and not entity:
        raise DiagError("a report is saved to an entity", hint="add --entity TEAM", usage=True)
    untracked = [str(r.path) for r, p in zip(opened, places, strict=True) if not p.get("id")]
    if untracked:
        hint = f"dpo-diag track {untracked[0]} --to wandb"
        print(f"not in W&B: {', '.join(untracked)}; next: {hint}", file=sys.stderr)
    documents = [_explanation(run) for run in opened]
    told = [
        Told(str(place.get("name") or run.name), place.get("id"), document)
        for run, place, document in zip(opened, places, documents, strict=True)
    ]
    set_in = [overrides(run.path) for run in opened]
    names = dict.fromkeys(name for of in set_in for name in of if "." in name and not name.startswith("hydra."))
    report = build_report(
        project or next((p["project"] for p in places if p.get("project")), "dpo_diag"),
        entity,
        title=title,
        runs=told,
        split=_split(opened, documents),
        scores=_scores(opened),
        knobs=[n for n in names if len({of.get(n) for of in set_in}) > 1],
        group=group,
    )
    print(to_json(spec_of(report)) if json else save_report(report))
    return 0


def _explanation(run: Run) -> dict[str, Any]:
    from dpo_diag.diagnosis import explain

    try:
        return dict(explain(run))
    except DiagError:
        return {}


def _split(runs: Sequence[Run], documents: Sequence[dict[str, Any]]) -> str:
    """The evaluation split that most of the runs measured."""
    from dpo_diag.diagnosis.logged import measured_split

    found = [measured_split(run, document.get("split")) for run, document in zip(runs, documents, strict=True)]
    counts = Counter(split for split in found if split)
    return counts.most_common(1)[0][0] if counts else "eval"


def _scores(runs: Sequence[Run]) -> list[str]:
    names: dict[str, None] = {}
    for run in runs:
        rows = run.history.loc[run.history["name"].str.startswith("score/"), ["split", "name"]].drop_duplicates()
        names |= dict.fromkeys(f"{split}/{name}" for split, name in rows.itertuples(index=False, name=None))
    return list(names)
