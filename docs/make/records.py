"""docs/reference/records.md and metrics.md: the columns of a run's tables, run.json, and the metric table."""

from __future__ import annotations

import re
from collections.abc import Iterator

from docs.make.markdown import code, head, joined, table
from dpo_diag.records.files import SCHEMA_VERSION
from dpo_diag.records.metric_table import METRICS, Metric
from dpo_diag.records.run_info import declared_fields
from dpo_diag.records.schemas import ANSWER_LOGPS, CHES, TABLES, SideTable, Table

_ABOUT = f"""
A run is a folder: `run.json` and one folder of Parquet files per table. Training, scoring and importing write it, and
everything else reads it, with `dpo_diag.load_run` or any Parquet reader. This is schema {SCHEMA_VERSION}; a reader
takes every minor version of its own major version. Logarithms are natural. Rows of different `split` have different
origins and are never pooled; what a source does not know is null. Files hold a CRC-32 of their bytes: Parquet in its
footer (`dpo_diag.crc32`), JSON as the last key `crc32`; a damaged one is named and left out, and `dpo-diag doctor RUN`
verifies all. [Design](../design.md) draws the folder.
"""
_METRICS = """
Names of the table `history`, without a `train/` or `eval_` prefix. Those with sides stand once per side, as
`NAME/chosen` and `NAME/rejected` (SFT: `NAME/response`, `NAME/prompt`). "From the records" means: computed from the
pair rows' sums and counts, whatever the batch size and the number of processes; the others are the trainer's own.
What other trainers call them: [logs of other trainers](logs.md).
"""


def page() -> str:
    """Tables, files beside them, and run.json, in Markdown."""
    parts = [head("Record columns", "dpo_diag/records/schemas.py, run_info.py and model_info.py"), _ABOUT]
    for declared in (*TABLES.values(), CHES, ANSWER_LOGPS):
        parts += [f"## {declared.name}", _where(declared)]
        parts.append(table(("column", "type", "null", "unit", "meaning"), _columns(declared)))
    rows = ((code(f.name), code(_type(f.type)), f.unit or "", f.meaning) for f in declared_fields())
    return joined(*parts, "## run.json", table(("field", "type", "unit", "meaning"), rows))


def metrics_page() -> str:
    """The metric table in Markdown."""
    rows = (
        (code(f"{name}/SIDE" if metric.sides else name), metric.label.replace("{side} ", "").replace("{name}", "NAME"),
         metric.unit, metric.better, "yes" if _has_formula(metric) else "", metric.description)
        for name, metric in METRICS.items()
    )  # fmt: skip
    names = ("name", "label", "unit", "better", "from the records", "what it is")
    return joined(head("Metrics", "dpo_diag/records/metric_kinds"), _METRICS, table(names, rows))


def _has_formula(metric: Metric) -> bool:
    return metric.of_side is not None or metric.of_each is not None


def _type(annotation: str) -> str:
    """An annotation without modules, written the same whatever version of Python prints it."""
    plain = re.sub(r"\b[a-z_]+\.(?=\w)", "", annotation)
    return re.sub(r"Optional\[(.*)\]$", r"\1 | None", plain)


def _where(declared: Table) -> str:
    place = f"The file `{declared.file}`" if isinstance(declared, SideTable) else f"The folder `{declared.name}/`"
    return f"{place}. One row per ({', '.join(f'`{c}`' for c in declared.key)}).\n"


def _columns(declared: Table) -> Iterator[tuple[str, str, str, str, str]]:
    for column in declared.columns:
        type_ = str(column.type).partition("<")[0].replace("dictionary", "string, as categories")
        shown = f"list of {column.type.value_type}" if type_ == "list" else type_
        yield code(column.name), shown, "may be" if column.nullable else "never", column.unit or "", column.meaning
