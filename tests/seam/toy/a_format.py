"""A log format: `@10 loss=0.5`."""

from __future__ import annotations

from pathlib import Path

from dpo_diag.importers import LogFormat, Options, Parsed, register


def read(path: Path, options: Options) -> Parsed:
    parsed = Parsed.of("toy", [path], options, "toy-trainer")
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        step, _, value = text[1:].partition(" loss=")
        parsed.n_rows += 1
        parsed.store.add({"step": step, "loss": value}, line)
    return parsed.with_steps(options)


register(
    LogFormat(
        name="toy", description="a toy's log", trainers=("toy",), file_name="toy.log", example="@10 loss=0.5",
        order=15, why="its lines begin with @", sniff=lambda head: head.text.startswith("@"), read=read,
    )
)  # fmt: skip
