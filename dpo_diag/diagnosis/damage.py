"""What an explanation could not read: said beside its headline, for it may be about another set of pairs then."""

from __future__ import annotations

from dpo_diag.records import Run
from dpo_diag.records.files import part_of
from dpo_diag.text import plural, some


def left_out(run: Run, judged: str | None, asked: str | None) -> str:
    """One or two sentences about the record files of a run that were passed over; "" where none was.

    Args:
        judged: the split that the explanation is about.
        asked: the one that was asked for; None where the best one is taken.
    """
    if not run.damaged:
        return ""
    steps: dict[tuple[str, str], list[int]] = {}
    for path in run.damaged:
        part = part_of(path)
        steps.setdefault((path.parent.name, part.label), []).extend((part.first, part.last)) if part else None
    lost = [f"{table} of {split}, {_span(of)}" for (table, split), of in sorted(steps.items())]
    n = len(run.damaged)
    text = f"{plural(n, 'record file')} cannot be read and {'is' if n == 1 else 'are'} left out: {some(lost)}."
    missed = {split for table, split in steps if table == "pairs" and split in run.info.splits} - {judged}
    if judged is not None and asked is None and missed and (best := run.preferred({judged, *missed})[0]) != judged:
        text += f" So this is about {judged}, not {best}."
    return text


def _span(steps: list[int]) -> str:
    first, last = min(steps), max(steps)
    return f"step {first}" if first == last else f"steps {first} to {last}"
