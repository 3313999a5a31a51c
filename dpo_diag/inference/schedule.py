"""When to look: early and often, then at every evaluation."""

from __future__ import annotations


def schedule(max_steps: int, eval_steps: int | None = None, *, start: int = 0) -> list[int]:
    """Steps 0, 1, 2, 4, 8, ... up to the first evaluation, then every evaluation, and the last step; sorted.

    >>> schedule(50, 20)
    [0, 1, 2, 4, 8, 16, 20, 40, 50]

    Args:
        max_steps: optimizer steps of the training; [0] for none.
        eval_steps: steps between evaluations; None or 0 for none: powers of two all the way.
        start: leave out what comes before (a resumed training).
    """
    limit = eval_steps if eval_steps else max_steps
    steps = {0, max_steps}
    power = 1
    while power < min(limit, max_steps):
        steps.add(power)
        power *= 2
    if eval_steps:
        steps.update(range(eval_steps, max_steps + 1, eval_steps))
    return sorted(step for step in steps if step >= start)
