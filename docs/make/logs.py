"""docs/reference/logs.md: formats that are read, and every trainer's names with their meaning."""

from __future__ import annotations

from docs.make.markdown import code, head, joined, table
from dpo_diag.importers.formats.pair_table import COLUMNS
from dpo_diag.importers.keys import STEP_KEYS
from dpo_diag.importers.log_format import FORMATS
from dpo_diag.records.metric_aliases import ALIASES

_ABOUT = """
`dpo-diag explain LOG` and `dpo-diag import LOG` know a file by its beginning; `--as NAME` takes it as one format. The
same tables in a terminal: `dpo-diag import --formats`.
"""
_NAMES = """
A `train/` or `eval/` prefix sets the split; `eval_<set>_<name>` is the set's own split `eval_<set>`. Versions are those
whose code or logs were read. A name that stands nowhere here is kept under its own name.
"""


def page() -> str:
    """The page in Markdown."""
    formats = sorted(FORMATS.values(), key=lambda f: f.name)
    rows = ((code(f.name), f.description, ", ".join(f.trainers)) for f in formats)
    names = ((a.trainer, a.version, code(a.key), code(a.name), a.meaning) for a in ALIASES)
    return joined(
        head("Logs of other trainers", "dpo_diag/importers/formats and dpo_diag/records/metric_aliases.py"),
        _ABOUT,
        "## Formats",
        table(("--as", "what", "written by"), rows),
        "## Names",
        _NAMES,
        table(("trainer", "version", "its name", "ours", "what it is"), names),
        "## Steps",
        f"Step columns, best first: {', '.join(map(code, STEP_KEYS))}.",
        "## One row per pair",
        "`--as pairs` reads JSON lines, CSV or Parquet with these columns:",
        f"```text\n{COLUMNS}\n```",
    )
