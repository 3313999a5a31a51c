"""What live guards did to a training beside warning: an update left out, a checkpoint taken back, a smaller rate."""

from __future__ import annotations

from contextlib import suppress

from dpo_diag.documents import parse_json
from dpo_diag.records import Run
from dpo_diag.records.run_info import RESTORED
from dpo_diag.text import some

_SAID = {
    "skip": "Guards left out the update of {steps} ({codes})",
    "restore": "Guards took back a checkpoint after {steps} ({codes})",
    "scale_lr": "Guards scaled the learning rate from {steps} on ({codes})",
}
_SHOWN = 4


def guards_acted(run: Run) -> list[str]:
    """A sentence per action, in the order of `_SAID`; [] where they did nothing. What ended a run is `stopped_by`.

    >>> from dpo_diag import load_run
    >>> guards_acted(load_run("runs/example"))
    []
    """
    found: dict[str, dict[int, list[str]]] = {}
    at_least: set[str] = set()
    if not run.has("alerts"):
        return []
    for step, code, evidence in run.alerts[["step", "code", "evidence"]].itertuples(index=False):
        with suppress(
            ValueError, TypeError, LookupError, AttributeError
        ):  # evidence that is cut or edited says nothing
            known = parse_json(evidence)
            action = known.get("action")
            if code == RESTORED and "from_step" in known:  # what was asked for could be without a checkpoint
                action, code = "restore", known["because"]
            elif action == "restore":
                continue
            if action in _SAID:
                found.setdefault(action, {}).setdefault(int(step), []).append(str(code))
                at_least |= {action} if known.get("last_said") else set()
    sentences = []
    for action, text in _SAID.items():
        if of_step := found.get(action):
            more = " at least" if action in at_least else ""
            steps = f"step{'s' if len(of_step) > 1 or more else ''} {some(sorted(of_step), _SHOWN)}{more}"
            codes = dict.fromkeys(code for step in sorted(of_step) for code in of_step[step])
            sentences.append(f"{text.format(steps=steps, codes=', '.join(codes))}.")
    return sentences
