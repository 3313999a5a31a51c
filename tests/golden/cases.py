"""The commands whose output is kept, by name; each runs in this process and returns its JSON document."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_diag import load_run
from dpo_diag.commands.diag import main
from tests.golden import binaries, written
from tests.golden.report import content
from tests.golden.snapshot import Snapshot, differences, read, snapshot

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "runs" / "example"
INPUTS = Path(__file__).parent / "inputs"

Case = Callable[[Path], Any]
"""Runs commands in an empty folder and returns what they said."""
CASES: dict[str, Case] = {}


def document_of(name: str, folder: Path) -> tuple[Any, dict[str, str]]:
    """(document, folder names that stand for paths) of a case, run in an empty folder."""
    document = CASES[name](folder)
    return document, {str(INPUTS): "INPUTS", str(folder): "TMP", str(REPOSITORY): "REPOSITORY"}


def dpo_diag(*arguments: str | Path) -> dict[str, Any]:
    """The JSON document that a command prints, with its exit status and the lines on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as error:  # the parser's own way out
            status = error.code
    document = json.loads(out.getvalue()) if out.getvalue().startswith(("{", "[")) else out.getvalue().splitlines()
    return {"exit": status, "output": document, "stderr": err.getvalue().splitlines()}


def _printed(*arguments: str | Path) -> dict[str, Any]:
    """What a command prints for people, as one text."""
    document = dpo_diag(*arguments)
    return {**document, "output": "\n".join(line.rstrip() for line in document["output"])}


def example(folder: Path) -> Path:
    """A copy of the example run: nothing is written beside the committed one."""
    return Path(shutil.copytree(EXAMPLE, folder / "example"))


STATIC = frozenset(("title", "severity", "sources"))
"""What a check says of itself whatever the run: kept once, in example_explain."""


def _brief(case: Case) -> Case:
    """A case whose explanation leaves out what does not depend on the run."""

    def brief(folder: Path) -> Any:
        document = case(folder)
        explained = document.get("explain", document)["output"]
        if isinstance(explained, dict):
            explained["checks"] = [{k: v for k, v in c.items() if k not in STATIC} for c in explained["checks"]]
            explained.pop("thresholds", None)
        return document

    return brief


def _explain_example(*options: str) -> Case:
    return lambda folder: dpo_diag("explain", EXAMPLE, *options, "--json", "--no-write")


CASES["example_explain"] = _explain_example()
CASES["example_explain_from_ref"] = _brief(_explain_example("--from", "ref"))
CASES["example_explain_20_to_60"] = _brief(_explain_example("--from", "20", "--to", "60"))
CASES["example_explain_train"] = _brief(_explain_example("--split", "train"))
CASES["formats"] = lambda folder: dpo_diag("import", "--formats", "--json")


def _records(path: Path) -> dict[str, Any]:
    """A run as `load_run` gives it: run.json, every series of the history in a few numbers, sums of the pairs."""
    run = load_run(path)
    series = {}
    for (split, name), rows in run.history.groupby(["split", "name"], observed=True, sort=True):
        if str(name).endswith(("runtime", "_per_second")):
            continue
        rows = rows.sort_values("step")
        series[f"{split} {name}"] = {
            "steps": [len(rows), int(rows["step"].iloc[0]), int(rows["step"].iloc[-1])],
            "values": [float(v) for v in (rows["value"].iloc[0], rows["value"].iloc[-1], rows["value"].mean())],
            "last_epoch": float(rows["epoch"].iloc[-1]),
            "derived": bool(rows["derived"].eq(True).any()),
        }
    pairs = {}
    for key, rows in run.pairs.groupby(["step", "split", "role", "side"], observed=True, sort=True):
        numbers = rows.select_dtypes("number").drop(columns="step").dropna(axis=1, how="all")
        pairs[" ".join(map(str, key))] = {"n": len(rows), **{k: float(v) for k, v in numbers.sum().items()}}
    return {"run.json": run.meta, "history": series, "pairs": pairs, "n_texts": len(run.texts)}


def _read(make: Callable[[Path], Path], *options: str) -> Case:
    """What `import` says of a source, and what it wrote."""

    def case(folder: Path) -> Any:
        imported = dpo_diag("import", make(folder), "--out", folder / "run", "--json", *options)
        return {"import": imported, "records": _records(folder / "run")}

    return case


def _imported(make: Callable[[Path], Path], *options: str) -> Case:
    """The same, and what `explain` says of the run."""
    read_it = _read(make, *options)

    def case(folder: Path) -> Any:
        document = read_it(folder)
        return {**document, "explain": dpo_diag("explain", folder / "run", "--json", "--no-write")}

    return _brief(case)


def _committed(name: str) -> Callable[[Path], Path]:
    return lambda folder: INPUTS / name


for _name, _input, _options in (
    ("trl_displaced", "trl_displaced", ()),
    ("trl_healthy", "trl_healthy_trainer_state.json", ("--loss", "sigmoid", "--beta", "0.1")),
    ("trl_wrong_reference", "trl_wrong_reference_trainer_state.json", ("--loss", "sigmoid")),
    ("trl_ipo_means", "trl_healthy_trainer_state.json", ("--loss", "ipo", "--beta", "0.1", "--logps", "mean")),
    ("sft", "sft_trainer_state.json", ()),
    ("orpo_log", "orpo_log.jsonl", ("--beta", "0.25")),
    ("llamafactory_v0", "llamafactory_v0/trainer_log.jsonl", ("--loss", "sigmoid", "--beta", "0.1")),
    ("llamafactory_v1", "llamafactory_v1", ("--loss", "sigmoid", "--beta", "0.1")),
    ("swift", "swift/logging.jsonl", ("--loss", "sigmoid", "--beta", "0.1")),
    ("h2o", "h2o/charts_falcon.json", ()),
    ("torchtune", "torchtune", ()),
    ("eric_mitchell", "eric_mitchell.log", ()),
    ("console_diverging", "console_diverging.log", ()),
    ("openrlhf_console", "openrlhf_console.log", ()),
    ("generic_log", "generic_log.jsonl", ()),
    ("open_instruct", "open_instruct.jsonl", ()),
    ("wandb_export", "wandb_export.csv", ("--run", "sunny-7")),
    ("wandb_history_dead", "wandb_history_dead.csv", ()),
    ("notebook_table", "notebook_table.tsv", ()),
    ("long_table", "long_table.csv", ()),
    ("tensorboard_csv", "run-dpo-tag-train_loss.csv", ()),
    ("pairs_displaced", "pairs_displaced.jsonl",
     ("--loss", "sigmoid", "--beta", "0.1", "--scores", str(INPUTS / "scores.csv"))),
    ("pairs_healthy", "pairs_healthy.csv", ("--loss", "sigmoid", "--beta", "0.1")),
):  # fmt: skip
    CASES[f"import_{_name}"] = _imported(_committed(_input), *_options)
CASES["import_pairs_swapped_sign"] = lambda folder: dpo_diag(
    "import", INPUTS / "pairs_swapped_sign.csv", "--out", folder
)


for _name, _make, _options in (
    ("openrlhf_tensorboard", binaries.openrlhf_tensorboard, ("--loss", "sigmoid", "--beta", "0.1")),
    ("several_sources", binaries.several_sources, ()),
    ("ren", binaries.ren_folder, ("--loss", "sigmoid", "--beta", "0.1")),
    ("parquet_pairs", binaries.parquet_pairs, ("--loss", "ipo", "--beta", "0.2", "--split", "held_out")),
):
    CASES[f"import_{_name}"] = _imported(_make, *_options)
for _name, _make, _options in (  # numbers of a log above, in another format
    ("tensorboard", binaries.tensorboard, ()),
    ("wandb_file", binaries.wandb_file, ()),
    ("trackio", binaries.trackio_database, ("--run", "displaced")),
    ("gzipped_log", binaries.gzipped_log, ("--trainer", "ms-swift", "--trainer-version", "3.1")),
    ("h2o_zip", binaries.h2o_zip, ()),
):
    CASES[f"import_{_name}"] = _read(_make, *_options)


def _explain_written(make: Callable[[Path], Path]) -> Case:
    return _brief(lambda folder: dpo_diag("explain", make(folder), "--json", "--no-write"))


for _make in (written.benign_squeezing, written.few_hard_pairs, written.only_lengths, written.two_tokenizers,
              written.end_token):  # fmt: skip
    CASES[f"written_{_make.__name__}"] = _explain_written(_make)

CASES["explain_log"] = _brief(lambda folder: dpo_diag("explain", INPUTS / "orpo_log.jsonl", "--json"))


def _thresholds(folder: Path) -> Any:
    """Other thresholds, and rules that make the command fail."""
    document = dpo_diag(
        "explain", EXAMPLE, "verdict.benign_margin=0.2", "turning_point.least_dlog=0.05", "--json", "--no-write",
        "--fail-on", "harmful,speaks:DVG001",
    )  # fmt: skip
    kept = {key: document["output"][key] for key in ("verdict", "thresholds", "turning_points")}
    return {**document, "output": kept}


CASES["example_explain_thresholds"] = _thresholds
CASES["example_explain_printed"] = lambda folder: _printed("explain", EXAMPLE, "--no-write", "--full", "--top", "3")


def _short(make: Callable[[Path], Path]) -> Case:
    """The fifteen lines, from the folder that holds what is explained: a long path would be cut somewhere else."""

    def case(folder: Path) -> Any:
        path = make(folder)
        with contextlib.chdir(path.parent):
            return _printed("explain", path.name, "--no-write")

    return case


for _name, _make in (
    ("example", example),
    ("log", _committed("trl_displaced")),
    ("healthy_log", _committed("trl_healthy_trainer_state.json")),
    ("dead_log", _committed("wandb_history_dead.csv")),
    ("sft_log", _committed("sft_trainer_state.json")),
    ("batches", _committed("openrlhf_console.log")),
    ("pair_table", _committed("pairs_displaced.jsonl")),
    ("benign", written.benign_squeezing),
    ("few_hard_pairs", written.few_hard_pairs),
):
    CASES[f"short_{_name}"] = _short(_make)


def _outputs(*options: str) -> Case:
    """The comparison of the example's answers; of 420 rows of behaviours those of all prompts at the last step."""

    def case(folder: Path) -> Any:
        document = dpo_diag("outputs", EXAMPLE, "--json", *options)
        rows = document["output"]["behaviours"]
        last = max(row["step"] for row in rows)
        document["output"]["behaviours"] = [r for r in rows if r["tag"] == "(all)" and r["step"] == last]
        return document

    return case


CASES["example_outputs"] = _outputs()
CASES["example_outputs_printed"] = lambda folder: _printed(
    "outputs", EXAMPLE, "--baseline", "20", "--to", "60", "--limit", "3", "--width", "100", "--color", "never"
)


def _report(run: Path, folder: Path) -> Any:
    """What a reader sees in the report, by section."""
    page = folder / "report.html"
    document = dpo_diag("report", run, "--out", page, "--open-less")
    return {"exit": document["exit"], "sections": content(page.read_text(encoding="utf-8"))}


def _report_of_an_import(folder: Path) -> Any:
    dpo_diag("import", INPUTS / "trl_displaced", "--out", folder / "run")
    return _report(folder / "run", folder)


def _sweep(folder: Path) -> Any:
    """Two imported runs, the example, and a folder that is no run."""
    for name, source in (("a", "trl_displaced"), ("b", "trl_wrong_reference_trainer_state.json")):
        dpo_diag("import", INPUTS / source, "--out", folder / name, "--loss", "sigmoid", "--beta", "0.1")
    (folder / "empty").mkdir()
    return dpo_diag("sweep", folder / "a", folder / "b", folder / "empty", example(folder), "--json")


def _doctor(folder: Path) -> Any:
    """What it says of the run; what it says of the machine is the machine's own."""
    document = dpo_diag("doctor", EXAMPLE, "--json", "--quick")
    return {"exit": document["exit"], "run": document["output"]["run"]}


CASES["example_report"] = lambda folder: _report(example(folder), folder)
CASES["import_report"] = _report_of_an_import
CASES["sweep"] = _sweep
CASES["doctor"] = _doctor
CASES["gate"] = lambda folder: dpo_diag("gate", EXAMPLE, "--rules", INPUTS / "gate_rules.yaml", "--json")
CASES["gate_from_20"] = lambda folder: dpo_diag(
    "gate", EXAMPLE, "--rules", INPUTS / "gate_metric_rules.yaml", "--baseline", "20", "--json"
)
CASES["ppl"] = lambda folder: dpo_diag("ppl", "2.3", "--vocab-size", "49152", "--json")
CASES["ppl_of_two"] = lambda folder: dpo_diag("ppl", "3.1", "2.3", "--json")


def _trained(method: str) -> Case:
    """A tiny training and its explanation; without sentences, whose last digits another processor may turn."""

    def case(folder: Path) -> Any:
        from tests.golden import trained

        with contextlib.redirect_stdout(io.StringIO()):  # the trainer's own rows
            run = getattr(trained, f"train_{method}")(folder)
        document = dpo_diag("explain", run, "--json", "--no-write")
        return {"exit": document["exit"], "output": document["output"], "records": _records(run)}

    return _brief(case)


TRAINED = ("trained_dpo", "trained_sft")
CASES["trained_dpo"] = _trained("dpo")
CASES["trained_sft"] = _trained("sft")


def compared(name: str, folder: Path) -> tuple[Snapshot, list[str]]:
    """The snapshot of today, and how it differs from the stored one."""
    document, places = document_of(name, folder)
    new = snapshot(document, places)
    if name not in TRAINED:
        return new, differences(read(name), new)
    new = Snapshot(new.numbers, {})
    return new, differences(read(name), new, rtol=1e-4, atol=1e-5)
