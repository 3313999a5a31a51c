"""MLflow's file store: `mlruns/<experiment>/<run>/metrics/<key>`, lines of `timestamp value step`; params beside it.

MLflow keeps every value that was logged: a number that is NaN was NaN. Keys with slashes are nested folders.
"""

from __future__ import annotations

from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.numbers import number, step_number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import choose, take
from dpo_diag.records.text_files import lines, whole

_DEPTHS = ("metrics", "*/metrics", "*/*/metrics", "*/*/*/metrics")
"""Where a run's metrics lie: below the run's, the experiment's, the store's folder, or the one that holds the store."""


def read_mlflow(path: Path, options: Options) -> Parsed:
    """Read one run of a store.

    Raises:
        DiagError: no run in the folder, no run of `--run`'s name, or several and none named.
    """
    folders = _run_folders(path)
    if not folders:
        expected = "mlruns/<experiment>/<run>/metrics"
        raise DiagError("no MLflow run", where=path, expected=expected, hint="name the store's folder")
    names: dict[str, Path] = {}
    for folder in folders:
        given = _line(folder / "tags" / "mlflow.runName")
        names[given if given and given not in names else folder.name] = folder
    # An id, alone or behind its experiment's, stands for the name.
    asked = options.run and next(
        (name for name, folder in names.items() if options.run.rsplit("/", 1)[-1] == folder.name), options.run
    )
    taken = choose(list(names), asked, path)
    folder = names[taken]
    metrics = sorted(p for p in (folder / "metrics").rglob("*") if p.is_file())
    parsed = Parsed.of("mlflow", [folder / "metrics"], options)
    parsed.store.may_fill = False
    take(parsed, [taken], taken)
    points: list[tuple[int, str, float]] = []
    for file in metrics:
        key = file.relative_to(folder / "metrics").as_posix()
        for line, text in lines(file, parsed.skipped):
            cells = text.decode("utf-8", "replace").split()
            if not cells:
                continue
            value = number(cells[1]) if len(cells) > 1 else None
            step = step_number(cells[2]) if len(cells) > 2 else None
            if value is None or step is None:
                parsed.skipped.add(line, "not timestamp, value and step", file=key)
                continue
            points.append((step, key, value))
    parsed.store.add_points(points)
    params = {p.name: _line(p) for p in sorted((folder / "params").glob("*")) if p.is_file()}
    parsed.facts.merge(facts_from_mapping(params, "params"))
    parsed.steps_from = "the metrics' own step"
    parsed.n_rows = parsed.n_read = parsed.store.rows
    parsed.details["points"] = len(points)
    return parsed


def _run_folders(path: Path) -> list[Path]:
    return sorted({m.parent for depth in _DEPTHS for m in path.glob(depth) if m.is_dir() and _holds_values(m)})


def _holds_values(metrics: Path) -> bool:
    """Whether it holds a file whose first line is a time, a value and a step."""
    for file in (p for p in metrics.rglob("*") if p.is_file()):
        cells = _line(file).split()
        return len(cells) == 3 and number(cells[0]) is not None and number(cells[1]) is not None
    return False


def _line(file: Path) -> str:
    """A small file's first line, "" where there is none."""
    return whole(file).decode("utf-8", "replace").strip().split("\n", 1)[0].strip() if file.is_file() else ""


register(
    LogFormat(
        name="mlflow",
        description="MLflow's file store (mlruns/) or a run in it",
        trainers=("any",),
        file_name="mlruns",
        order=20,
        why="a folder with metrics/ and a value, time and step in each of its files",
        sniff=lambda head: False,
        read=read_mlflow,
        rounding=0,
        reads_folders=True,
        sniff_folder=lambda folder: bool(_run_folders(folder)),
    )
)
