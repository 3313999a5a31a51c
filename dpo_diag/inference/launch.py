"""Who does a scoring or generation: this process, those of a launcher, or the actors of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dpo_diag.inference.by_rank import place, work_by_rank
from dpo_diag.inference.by_ray import Cluster, work_by_ray
from dpo_diag.inference.shared_work import Job, assemble
from dpo_diag.inference.work_list import Shelf
from dpo_diag.models.checkpoints import Loader
from dpo_diag.records.adding import added_to

SHELF = ".work"
"""In the run folder, or behind its URL: finished parts, until the run is put together."""


@dataclass(frozen=True)
class Launch:
    """How work is shared.

    Attributes:
        launcher: rank (the processes of torchrun or accelerate launch) or ray.
        shard_size: rows of a set in one part: what a killed worker loses at most.
        cluster: of ray.
    """

    launcher: str = "rank"
    shard_size: int = 256
    cluster: Cluster = field(default_factory=Cluster)


def run_shared(
    job: Job, out: str, folder: Path, loader: Loader, launch: Launch, *, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Do what `folder` lacks, together with the others, and put it together there.

    Args:
        out: where the parts lie meanwhile: the run folder itself, or the URL that it will be uploaded to.
        folder: the run folder on this machine.

    Returns: whether this is the process that put it together; every other one is done.
    """
    items, shelf = job.items(folder, launch.shard_size), Shelf(f"{out}/{SHELF}/{job.kind}")
    if launch.launcher != "ray" and place()[0]:
        work_by_rank(job, items, shelf, loader, say=say)
        return False
    if not items and not shelf.names():
        return True
    # From the start on the run says what is at work in it: how to go on, if all are killed before it is put together.
    with added_to(folder, job.call) as (writer, before):
        if launch.launcher == "ray":
            work_by_ray(job, items, shelf, loader, launch.cluster, say=say)
        else:
            work_by_rank(job, items, shelf, loader, say=say)
        assemble(job, items, shelf, writer, before)
    return True


def parts_wait(out: str) -> bool:
    """Whether finished parts lie in a run folder whose work was killed before it was put together."""
    return next(Path(out).glob(f"{SHELF}/*/*.zip"), None) is not None
