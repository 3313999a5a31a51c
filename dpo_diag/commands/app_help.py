"""`--help` of the Hydra apps: what it does, three examples, and what this app takes; nothing is composed for it."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dpo_diag.commands.schema_keys import keys_below
from dpo_diag.documents import parse_yaml
from dpo_diag.text import terminal_width


@dataclass(frozen=True)
class AppHelp:
    """What an app says of itself.

    Attributes:
        about: in one sentence.
        examples: (command line, what it is for).
        config: its file in conf/.
        schema: module:class of its configuration.
        refused: group -> options of other apps.
    """

    about: str
    examples: tuple[tuple[str, str], ...]
    config: str
    schema: str
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


APPS = {
    "dpo-train": AppHelp(
        "Train on preference pairs (DPO) or answers (SFT), measure every pair and token on the way, explain the run.",
        (
            ("dpo-train experiment=sql_dpo", "the embedded case: no download, minutes on a CPU"),
            ("dpo-train model.name=org/model data.path=pairs.jsonl", "your model, your pairs"),
            ("dpo-train -m experiment=sql_dpo loss.beta=0.1,0.5", "several runs and their table"),
        ),
        "config",
        "dpo_diag.config:Config",
    ),
    "dpo-score": AppHelp(
        "Measure finished checkpoints on preference pairs, whoever trained them, and explain what changed.",
        (
            ("dpo-score 'checkpoints=out/checkpoint-*' data.path=pairs.jsonl", "every checkpoint of a training"),
            ("dpo-score checkpoints=[sft,dpo] reference=sft data.path=pairs.jsonl", "against the model before"),
            ("dpo-score checkpoints=out data.path=pairs.jsonl loss=ipo loss.beta=0.1", "with the loss it had"),
        ),
        "score",
        "dpo_diag.config_checkpoints:ScoreConfig",
        {"data": ("task",)},
    ),
    "dpo-generate": AppHelp(
        "Let finished checkpoints answer the same prompts, so that their answers can be compared.",
        (
            ("dpo-generate 'checkpoints=out/checkpoint-*' prompts.path=general_en", "a shipped set of prompts"),
            ("dpo-generate checkpoints=[sft,dpo] prompts.path=mine.jsonl", "your prompts"),
            ("dpo-generate checkpoints=[sft,dpo] prompts.path=mine.jsonl out=RUN", "into a run that was scored"),
        ),
        "generate",
        "dpo_diag.config_checkpoints:GenerateConfig",
        {"prompts": ("none", "task")},
    ),
}


def help_text(name: str, width: int | None = None) -> str:
    """The help of an app, at most `width` cells wide (default: the terminal's)."""
    app, width = APPS[name], width or min(100, terminal_width(unknown=80))
    groups = group_options(app)
    module, _, schema = app.schema.partition(":")
    keys = keys_below(getattr(importlib.import_module(module), schema))
    lines = [*textwrap.wrap(app.about, width), ""]
    for command, what in app.examples:
        lines += [f"  {command}", f"      {what}"]
    lines += ["", f"Usage: {name} [GROUP=OPTION | KEY=VALUE]...", "", "Groups, each with its options:"]
    lines += _listed(((group, options) for group, options in groups.items()), width)
    lines += ["", "Keys:"]
    lines += _listed(((f"{prefix}." if prefix else "", _own(keys, prefix)) for prefix in keys), width)
    lines += ["", *textwrap.wrap("Lists: KEY=[a,b]. A value with blanks or commas: KEY='\"a b\"'.", width)]
    lines += [
        "",
        "  --cfg job         print every key with its value, and stop",
        "  -m                every combination of values joined by commas",
        '  -sc install=bash  completion: eval "$(' + name + ' -sc install=bash)"',
        "  --debug           tracebacks",
        *(
            ["  resume=RUN        go on with an interrupted run; replay=STEP: a step again"]
            if "resume" in keys[""]
            else []
        ),
    ]
    return "\n".join(lines)


def group_options(app: AppHelp) -> dict[str, list[str]]:
    """Group -> its options, of the groups that the app's file in conf/ composes and a user can choose from."""

    from dpo_diag.config import conf_dir

    folder = conf_dir()
    entries = parse_yaml((folder / f"{app.config}.yaml").read_text(encoding="utf-8"))["defaults"]
    named = [str(key).removeprefix("optional ") for entry in entries if isinstance(entry, dict) for key in entry]
    found = {group: sorted(p.stem for p in (folder / group).glob("*.yaml")) for group in named}
    taken = {group: [o for o in options if o not in app.refused.get(group, ())] for group, options in found.items()}
    return {group: options for group, options in taken.items() if options != ["default"]}


def _own(keys: Mapping[str, Sequence[str]], prefix: str) -> list[str]:
    """The names below a prefix that are no prefixes themselves."""
    return [name for name in keys[prefix] if f"{prefix}.{name}".lstrip(".") not in keys]


def _listed(rows: Iterable[tuple[str, Sequence[str]]], width: int) -> Iterator[str]:
    """Names behind their heading, wrapped below one another."""
    listed = list(rows)
    size = max(len(head) for head, _ in listed)
    for head, names in listed:
        wrapped = textwrap.wrap(", ".join(names), max(20, width - size - 4), break_long_words=False)
        for i, part in enumerate(wrapped or [""]):
            yield f"  {head if i == 0 else '':<{size}}  {part}".rstrip()


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the user asks for this help and not for Hydra's."""
    return any(a in ("-h", "--help") for a in arguments)
