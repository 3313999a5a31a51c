"""docs/reference/losses.md: the losses that are trained and split, and those that are known by name in logs."""

from __future__ import annotations

from collections.abc import Iterator

from docs.make.markdown import code, head, joined, table
from dpo_diag.config import conf_dir
from dpo_diag.losses import LOSSES
from dpo_diag.losses.named import NAMED

_ABOUT = """
`loss=OPTION` chooses one; `loss.types=[NAME,...] loss.weights=[...]` adds several up. "Splits" means that `explain`
divides its change exactly into what came through the chosen and through the rejected answers
([how](../design.md#2-words-units-formulas)); a loss that couples the pairs of a batch has no such split, and
explain says so. Where none of a loss's kinds looks at a reference, none is loaded or called.
"""
_COEFFICIENTS = """
Beside `loss.beta` and `loss.label_smoothing`; `loss.coefficients.NAME=` sets one (with a `+` before it where the option
does not list it).
"""
_IN_LOGS = """
A log's loss of this name is not split: it has no formula per pair, or a weight or a margin that the name does not tell.
`--loss NAME` names one where a log does not.
"""


def page() -> str:
    """The page in Markdown."""
    names = ("name", "option", "source", "trained by", "reference", "splits")
    logged = ((code(name), loss.source, "yes" if loss.reference else "no") for name, loss in NAMED.items())
    return joined(
        head("Losses", "dpo_diag/losses"),
        _ABOUT,
        table(names, _kinds()),
        "## Coefficients of their own",
        _COEFFICIENTS,
        table(("name", "of", "default", "allowed", "where the default comes from"), _coefficients()),
        "## Known by name in logs",
        _IN_LOGS,
        table(("name", "source", "rewards against a reference"), logged),
    )


def _coefficients() -> Iterator[tuple[str, str, str, str, str]]:
    for kind, loss in sorted(LOSSES.items()):
        for name, own in loss.coefficients.items():
            yield code(name), code(kind), f"{own.default:g}", own.range, own.origin


def _kinds() -> Iterator[tuple[str, str, str, str, str, str]]:
    options = {path.stem for path in (conf_dir() / "loss").glob("*.yaml")}
    for name, loss in sorted(LOSSES.items()):
        option = code(f"loss={name}") if name in options else code(f"loss.types=[sigmoid,{name}]")
        trained = "TRL" if loss.in_trl else "this project, on TRL's forward"
        reference, splits = "yes" if loss.reference else "no", "no" if loss.formula is None else "yes"
        yield code(name), option, loss.source, trained, reference, splits
