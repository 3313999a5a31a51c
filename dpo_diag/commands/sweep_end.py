"""How a multirun ends: its table, and the verdict of each run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_multirun
from dpo_diag.text import terminal_width

if TYPE_CHECKING:
    from dpo_diag.diagnosis.sweep import Sweep


def ending(folder: Path) -> None:
    """What a multirun prints at its end, on standard error; nothing where no job came as far as a record."""
    from dpo_diag.commands.sweep_text import lines
    from dpo_diag.diagnosis.sweep import sweep as collect

    collected = collect([folder])
    width = terminal_width(unknown=80)
    print("", *lines(collected, width, verdicts(collected)), sep="\n", file=sys.stderr)
    say_next(after_multirun(folder, failed=bool(collected.unfinished)), sys.stderr)


def verdicts(collected: Sweep) -> dict[str, dict[str, Any]]:
    """Run -> the verdict of its explanation: the one that lies in its folder where that is still true, else a new one;
    a run that cannot be explained has none."""
    from dpo_diag.commands.findings import made_from, read_findings
    from dpo_diag.diagnosis import explain

    found = {}
    for name in collected.runs["run"] if len(collected.runs) else ():
        run = Path(str(name))
        try:
            explained = read_findings(run, made_from(run)) or explain(run)
        except DiagError:
            continue
        except Exception as error:  # whatever is wrong with one run's explanation must not hide what became of the jobs
            print(f"{run}: not explained: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        found[str(name)] = {key: explained["verdict"][key] for key in ("label", "harm", "headline")}
    return found
