"""`dpo-diag keep RUN`: which checkpoint to keep, and why; which may be deleted."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.next_steps import after_keep
from dpo_diag.text import to_json
from dpo_diag.thresholds import load_thresholds, parse_threshold


def keep(
    run: str,
    /,
    *overrides: Annotated[str, Parameter(show=True)],
    metric: str | None = None,
    json: bool = False,
) -> int:
    """Say which checkpoint to keep, and why, and which may be deleted; nothing is deleted.

    Args:
        run: a run folder.
        overrides: thresholds as NAME=NUMBER, e.g. keep.band=2.
        metric: what they are judged by, NAME or NAME@SPLIT; default: the task's score, else the reward accuracy of
            held-out pairs, else chosen's cross-entropy.
        json: one JSON document on standard output.
    """
    from dpo_diag.diagnosis.keep import keep as choice
    from dpo_diag.diagnosis.keep import lines
    from dpo_diag.records import load_run

    opened = load_run(run)
    document = choice(opened, metric, load_thresholds(dict(parse_threshold(text) for text in overrides)))
    following = after_keep(opened.path, document["keep"])
    if json:
        print(to_json({**document, "next": following}))
        return 0
    for line in lines(document):
        print(line)
    say_next(following)
    return 0
