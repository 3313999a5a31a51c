"""The commands whose output is kept, by name; each runs in this process and returns its JSON document."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_diag.commands.diag import main

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "runs" / "example"
INPUTS = Path(__file__).parent / "inputs"

Case = Callable[[Path], Any]
CASES: dict[str, Case] = {}
SLOW: frozenset[str] = frozenset()


def document_of(name: str, folder: Path) -> tuple[Any, dict[str, str]]:
    """(document, folder names that stand for paths) of a case, run in an empty folder."""
    document = CASES[name](folder)
    return document, {str(INPUTS): "INPUTS", str(folder): "TMP", str(REPOSITORY): "REPOSITORY"}


def dpo_diag(*arguments: str | Path) -> dict[str, Any]:
    """The JSON document that a command prints, with its exit status and the lines on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    document = json.loads(out.getvalue()) if out.getvalue().startswith(("{", "[")) else out.getvalue().splitlines()
    return {"exit": status, "output": document, "stderr": err.getvalue().splitlines()}


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
    return lambda folder: dpo_diag("explain", EXAMPLE, "--json", "--no-write", *options)


CASES["example_explain"] = _explain_example()
CASES["example_explain_from_ref"] = _brief(_explain_example("--from", "ref"))
CASES["example_explain_20_to_60"] = _brief(_explain_example("--from", "20", "--to", "60"))
CASES["example_explain_train"] = _brief(_explain_example("--split", "train"))
CASES["formats"] = lambda folder: dpo_diag("import", "--formats", "--json")


def _imported(make: Callable[[Path], Path], *options: str) -> Case:
    """What `import` says of a source and what `explain` says of the run that it wrote."""

    def case(folder: Path) -> Any:
        read = dpo_diag("import", make(folder), "--out", folder / "run", "--json", *options)
        return {"import": read, "explain": dpo_diag("explain", folder / "run", "--json", "--no-write")}

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
