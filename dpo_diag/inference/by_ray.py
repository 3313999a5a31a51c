"""A work list on a Ray cluster: actors hold a model each, parts go to whichever is free, those of one that died to
another. Only this process writes; workers need the checkpoints, not the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.inference.shared_work import Job, held, measured
from dpo_diag.inference.work_list import Item, Shelf
from dpo_diag.models.checkpoints import Loader

ATTEMPTS = 3
"""Workers that may die over one part before it is given up."""


@dataclass(frozen=True)
class Cluster:
    """Where the actors run.

    Attributes:
        address: of a Ray cluster (`auto` for the one that this machine belongs to); None starts one here.
        workers: actors, each with a model in memory; None for one a GPU, or one a machine without any.
        cpus: CPU cores that an actor is given.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1


class _Worker:
    """An actor's inside."""

    def __init__(self, job: Job, loader: Loader) -> None:
        self.job = job
        self.loader = held(loader).__enter__()

    def measure(self, item: Item) -> bytes:
        return measured(self.job, item, self.loader)


def work_by_ray(
    job: Job, items: Sequence[Item], shelf: Shelf, loader: Loader, cluster: Cluster | None = None, *,
    say: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Do every part that is not on the shelf.

    Raises:
        DiagError: ray is not installed; what a part raises; a part over which workers died again and again.
    """
    require("ray", "launcher=ray")
    import ray

    cluster, queue = cluster or Cluster(), [item for item in items if item.name not in shelf.names()]
    if not queue:
        return
    own = not ray.is_initialized()
    if own:
        ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    try:
        _work(ray, job, queue, shelf, loader, cluster, say)
    finally:
        if own:
            ray.shutdown()


def _work(
    ray: Any, job: Job, queue: list[Item], shelf: Shelf, loader: Loader, cluster: Cluster, say: Callable[[str], None]
) -> None:  # fmt: skip
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actor = ray.remote(num_cpus=cluster.cpus, num_gpus=1 if gpus else 0)(_Worker)
    sent = ray.put(job)
    n_workers = min(cluster.workers or gpus or len(ray.nodes()), len(queue))
    idle: list[tuple[Any, Any]] = [(actor.remote(sent, loader), None) for _ in range(n_workers)]
    at_work: dict[Any, tuple[Any, Item]] = {}
    deaths: Counter[Item] = Counter()
    while queue or at_work:
        while idle and queue:
            worker, last = idle.pop()
            item = next((i for i in queue if i.checkpoint == last), queue[0])
            queue.remove(item)
            say(str(item))
            at_work[worker.measure.remote(item)] = (worker, item)
        (ready,), _ = ray.wait(list(at_work), num_returns=1)
        worker, item = at_work.pop(ready)
        try:
            shelf.put(item.name, ray.get(ready))
            idle.append((worker, item.checkpoint))
        except ray.exceptions.RayActorError as error:
            deaths[item] += 1
            if deaths[item] >= ATTEMPTS:
                raise DiagError(
                    "workers died over one part", where=item, got=f"{ATTEMPTS} times, {str(error).splitlines()[0]}",
                    hint="too little memory? a smaller batch_size, or fewer workers",
                ) from error  # fmt: skip
            say(f"{item}: its worker died, another takes it")
            queue.insert(0, item)
            idle.append((actor.remote(sent, loader), None))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, DiagError) else error from None
