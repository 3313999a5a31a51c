"""What the checks say of public logs: `python -m benchmarks.study FOLDER [FOLDER ...]` writes docs/study.md.

`sources.yaml` names the logs and where they lie; copies are looked for in the folders by the file's name. Nothing is
fetched. A log that is not there is left out and counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dpo_diag.diagnosis.explanation import explain
from dpo_diag.errors import DiagError
from dpo_diag.importers import import_path

SOURCES = Path(__file__).parent / "sources.yaml"
RESULTS = Path(__file__).parents[2] / "docs" / "study.md"
OPEN = frozenset({"cannot_tell", "one_row", "loss_unclear", "within_noise"})


@dataclass(frozen=True)
class Read:
    """What was said of one log; `refused` is the error's message where it was not read."""

    source: str
    excerpt: bool
    form: str = ""
    rows: int = 0
    label: str = ""
    speaks: tuple[str, ...] = ()
    loss_fell: bool = False
    refused: str = ""

    def line(self) -> str:
        said = f"`{self.label}`" if self.label else f"refused: {self.refused}"
        return f"| {self.source} | {self.form} | {self.rows or ''} | {said} | {', '.join(self.speaks)} |"


def read(path: Path, source: str, excerpt: bool) -> Read:
    """Import and explain one log."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = import_path(path, Path(scratch) / "run")
            document = explain(done["run"])
        except DiagError as error:
            return Read(source, excerpt, refused=error.what)
    delta = document["loss"].get("delta")
    speaks = tuple(c["code"] for c in document["checks"] if c["outcome"] == "speaks")
    label = document["verdict"]["label"]
    return Read(source, excerpt, done["format"], done["rows"], label, speaks, delta is not None and delta < 0)


def study(folders: Sequence[Path], sources: Path = SOURCES) -> tuple[list[Read], int]:
    """Every log of the list that lies in one of the folders; how many do not."""
    found, absent = [], 0
    for entry in yaml.safe_load(sources.read_text(encoding="utf-8")):
        paths = [folder / entry["file"] for folder in folders if (folder / entry["file"]).exists()]
        if paths:
            found.append(read(paths[0], entry["source"], bool(entry.get("excerpt"))))
        else:
            absent += 1
    return found, absent


def report(found: list[Read], absent: int) -> str:
    """The aggregate and the table as Markdown."""
    judged = [r for r in found if r.label]
    counts = {
        "the loss fell": sum(r.loss_fell for r in judged),
        "of these, chosen became less likely (DVG001)": sum(r.loss_fell and "DVG001" in r.speaks for r in judged),
        "did not start at its reference (DVG007)": sum("DVG007" in r.speaks for r in judged),
        "rejected collapsed (DVG002)": sum("DVG002" in r.speaks for r in judged),
        "the run learned nothing, or did not train (DVG008, DVG009)": sum(
            bool({"DVG008", "DVG009"} & set(r.speaks)) for r in judged
        ),
        "numbers that cannot be (DVG011, DVG028)": sum(bool({"DVG011", "DVG028"} & set(r.speaks)) for r in judged),
        "healthy": sum(r.label == "healthy" for r in judged),
        "cannot tell, or within the noise": sum(r.label in OPEN for r in judged),
    }
    left = f"; {absent} of the list were not at hand" if absent else ""
    return "\n".join([
        "# Public logs of preference training", "",
        f"Printed by `python -m benchmarks.study`: {len(found)} logs ({sum(r.excerpt for r in found)} excerpts of a "
        f"few rows){left}. {len(judged)} were read, {len(found) - len(judged)} refused with a reason. The list with "
        "its sources is `benchmarks/study/sources.yaml`; no log is part of this project. The sample is what people "
        "published, often because something was wrong: its shares say nothing of trainings in general.", "",
        "| of the logs read | logs |", "| --- | ---: |", *(f"| {name} | {n} |" for name, n in counts.items()), "",
        "| source | read as | rows | headline | checks that speak |", "| --- | --- | ---: | --- | --- |",
        *(r.line() for r in found), "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with copies of the logs")
    document = report(*study(parser.parse_args().folders))
    print(document)
    RESULTS.write_text(document, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
