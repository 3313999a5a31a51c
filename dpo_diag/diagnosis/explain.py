"""From a run to the explanation: every decomposition, the checks, the verdict, as one plain JSON document.

`explain` assembles; each number is made in the module named after its question. The document's keys are fixed by
DESIGN section 6; further keys are additions that a reader may ignore.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.mean_sections import explain_means
from dpo_diag.diagnosis.narrative import narrate
from dpo_diag.diagnosis.pair_rows import PairRows, Step
from dpo_diag.diagnosis.pair_sections import explain_pairs
from dpo_diag.diagnosis.strict_json import plain
from dpo_diag.records import Run, load_run
from dpo_diag.thresholds import load_thresholds


def explain(
    run: Run | str | os.PathLike[str],
    from_step: Step | None = None,
    to_step: int | None = None,
    split: str | None = None,
    thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Why loss and perplexities moved between two steps, in which pairs and tokens, and whether it is harm.

    Args:
        run: a run or its folder.
        from_step: default the first measured step; "ref" compares the reference itself with `to_step`.
        to_step: default the last measured step.
        split: default a fixed evaluation set before anything else.
        thresholds: overrides by name, dotted or nested (see dpo_diag.thresholds).

    Returns: strict JSON values (None instead of NaN) with the keys of DESIGN section 6. A run without pair records gets
        what its logged means allow (`means`), the rest is {"not_applicable": reason}.

    Raises:
        DiagError: no run, no such split, step or threshold.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    values = load_thresholds(thresholds)
    rows = PairRows(opened)
    only_logged = split is not None and split not in rows.steps and bool((opened.history["split"] == split).any())
    if rows.steps and not only_logged:
        document = explain_pairs(align(rows, from_step, to_step, split), values)
    else:
        document = explain_means(opened, from_step, to_step, split, values)
    result: dict[str, Any] = plain(document)
    result["narrative"] = plain(narrate(result, opened))
    return result
