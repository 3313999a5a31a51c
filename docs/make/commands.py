"""docs/reference/commands.md: every command of dpo-diag, as the application itself describes it."""

from __future__ import annotations

from docs.make.markdown import head, joined
from dpo_diag.commands.diag import make_app

_ABOUT = """
The analyst's command. `dpo-train`, `dpo-score` and `dpo-generate` take keys of a configuration instead of options:
[configuration](configuration.md). Exit status: 0 success, 1 failure (a failed gate, job or run), 2 usage, 130
interrupted. `--debug` anywhere shows tracebacks; `--json` prints one JSON document on standard output and nothing else
there. `dpo-diag --install-completion` installs completion for your shell.
"""


def page() -> str:
    """The page in Markdown."""
    text = make_app().generate_docs(output_format="markdown", recursive=True, include_hidden=False)
    _, _, commands = text.partition("**Commands**:")
    # The library's own command shows the name of whatever program asks for this page.
    commands, _, _ = commands.partition("## dpo-diag --install-completion")
    commands = "".join(line for line in commands.splitlines(keepends=True) if "`--install-completion`" not in line)
    return joined(head("Commands of dpo-diag", "dpo_diag/commands"), _ABOUT, "## All commands", commands)
