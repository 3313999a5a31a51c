"""From the configuration's `data` to rows that a trainer can take: read, check, split, tokenise, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.config import DataConfig
from dpo_diag.data.hub import read_hub
from dpo_diag.data.pairs import PairSet, Row, read_pairs
from dpo_diag.data.splits import split_pairs, without_prompts_of
from dpo_diag.data.token_report import Look, TokenReport, measure_until
from dpo_diag.data.trained_tokens import HINTS
from dpo_diag.errors import DiagError
from dpo_diag.records.files import write_csv, write_json
from dpo_diag.rows.columns import wanted
from dpo_diag.rows.form import FORMS, How
from dpo_diag.rows.implicit import Rules
from dpo_diag.thresholds import load_thresholds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "data_report.json"
ISSUES_FILE = "data_issues.csv"
_EXAMPLES = 10


@dataclass
class PreferenceData:
    """Training and held-out rows of one configuration, and everything that happened to the rows on the way.

    Attributes:
        train, held_out: rows (see `dpo_diag.data.pairs.Row`); no prompt is in both.
        sources: what was read: "train", and "held_out" where it comes from a file or split of its own.
        leaked: training rows that were left out because their prompt is in the held-out source.
        max_train, max_held_out, seed: how many rows `tokenise` picks, None for all, and by which hash.
        tokens: token reports, once `tokenise` was called; they cover the rows that it looked at.
        kind: "text", "messages" or "whole text".
    """

    train: list[Row]
    held_out: list[Row]
    sources: dict[str, PairSet]
    leaked: list[Row] = field(default_factory=list)
    max_train: int | None = None
    max_held_out: int | None = None
    seed: int = 0
    tokens: dict[str, TokenReport] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.sources["train"].kind

    def check(self, max_bad_share: float) -> None:
        """Raise DiagError for a source with too many bad rows, or with none that is good."""
        for source in self.sources.values():
            source.require(max_bad_share)

    def tokenise(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        truncation_mode: str = "keep_start",
        look: Look | None = None,
    ) -> list[str]:
        """Pick `max_train` and `max_held_out` rows that reach the loss, and report what tokenising does to them.

        Rows that TRL would drop are left out and replaced by others while there are any. Returns notes for the user:
        what was decided, and a line for each thing that is wrong with the tokens of a set.
        """
        notes: list[str] = []
        look = look or Look(tokenizer)
        for name, n in (("train", self.max_train), ("held_out", self.max_held_out)):
            rows: list[Row] = getattr(self, name)
            if rows:
                kept, report = measure_until(rows, n, tokenizer, max_length, truncation_mode, self.seed, look)
                self.tokens[name] = report
                setattr(self, name, kept)
                notes.extend(note for note in report.notes if note not in notes)
                notes.extend(f"{name}: {finding.line(f'{report.what}s')}" for finding in report.findings)
        return notes

    def check_tokens(self, max_truncated_share: float) -> None:
        """Raise DiagError where max_length cuts or drops too many pairs of a set."""
        for report in self.tokens.values():
            report.require(max_truncated_share)

    def readings(self) -> list[str]:
        """How each file was read, and which of its columns of text were not."""
        return [line for source in self.sources.values() for part in source.parts for line in part.says()]

    def notes(self) -> list[str]:
        """A line for each set with dropped rows, one for each with rows noted (cut, for example); [] for none. What
        `tokenise` returned a line about is left out."""
        lines, table = [], self.issues()
        table = table[~table["why"].isin(list(HINTS))]
        for (name, dropped), part in table.groupby(["set", "dropped"], sort=False, observed=True):
            why = ", ".join(
                f"{group['row'].nunique()} {reason} (first row {group['row'].iloc[0]})"
                for reason, group in part.groupby("why", sort=False, observed=True)
            )
            lines.append(f"{name}: {part['row'].nunique()} rows {'dropped' if dropped else 'noted'}: {why}")
        return [*lines, "rows are listed in data_issues.csv"] if lines else []

    def issues(self) -> pd.DataFrame:
        """Every listed row: set, stage (read | split | tokenise), file (of several), row, why, detail, dropped."""
        frames = [s.issues.assign(set=name, stage="read") for name, s in self.sources.items()]
        if self.leaked:
            rows = [(r["row"], "the prompt is in the held-out set", "", True) for r in self.leaked]
            leaked = pd.DataFrame(rows, columns=["row", "why", "detail", "dropped"])
            frames.append(leaked.assign(set="train", stage="split"))
        frames += [t.issues.assign(set=name, stage="tokenise") for name, t in self.tokens.items()]
        frames = [frame for frame in frames if len(frame)]
        columns = ["set", "stage", "row", "why", "detail", "dropped"]
        if not frames:
            return pd.DataFrame(columns=columns)
        table = pd.concat(frames, ignore_index=True)[columns]
        if all(len(source.parts) < 2 for source in self.sources.values()):
            return table
        # Rows of several files are numbered on; what people look up is the file and the row in it.
        places = [self._source(name).place(row) for name, row in zip(table["set"], table["row"], strict=True)]
        table["row"] = [row for _, row in places]
        table.insert(2, "file", [file for file, _ in places])
        return table

    def _source(self, name: str) -> PairSet:
        """The source that a set's rows come from: the held-out share of a file is the training source's."""
        return self.sources.get(name, self.sources["train"])

    def summary(self) -> dict[str, Any]:
        """For run.json's `data`: sources, counts after each stage, reasons; no text of the pairs."""
        document: dict[str, Any] = {
            **self.sources["train"].summary(),
            "n_train": len(self.train),
            "n_held_out": len(self.held_out),
        }
        if "held_out" in self.sources:
            document["held_out_source"] = self.sources["held_out"].summary()
            document["n_leaked"] = len(self.leaked)
        if self.tokens:
            document["tokens"] = {name: report.summary() for name, report in self.tokens.items()}
        return document

    def write_report(self, folder: str | Path) -> Path:
        """Write data_report.json (summary and the first rows of each reason) and data_issues.csv (every row) there."""
        folder = Path(folder)
        issues = self.issues()
        examples = {
            f"{s}/{stage}/{why}": group.head(_EXAMPLES)[["row", "detail"]].to_dict("records")
            for (s, stage, why), group in issues.groupby(["set", "stage", "why"], sort=False, observed=True)
        }
        path = folder / REPORT_FILE
        write_json(path, {**self.summary(), "n_issues": len(issues), "examples": examples})
        write_csv(folder / ISSUES_FILE, issues)
        return path


def how_to_read(config: DataConfig, thresholds: Mapping[str, Any] | None = None, *, supervised: bool = False) -> How:
    """What the configuration says of the rows' form; `supervised`: rows of one answer are taken, too."""
    # A conversation that holds its answer is ShareGPT's, too, and known by its columns.
    form = "sharegpt" if config.kind == "sharegpt" and config.form == "auto" and not supervised else config.form
    if form != "auto" and form not in FORMS:
        raise DiagError(
            "unknown row form", where="data.form", got=form, expected=f"auto, {', '.join(FORMS)}", usage=True
        )
    min_share = load_thresholds(thresholds)["rows.implicit_prompt_min_share"]
    rules = Rules(any=config.implicit_prompt == "any", min_share=min_share)
    return How(form, wanted(vars(config.columns)), rules, config.chat, supervised)


def read_source(config: DataConfig, path: Any, split: str | None, how: How | None = None) -> PairSet:
    """One source of the configuration: files (`jsonl`, `sharegpt`) or a split of a hub data set."""
    how = how or how_to_read(config)
    if config.kind == "hub":
        if not config.name:
            raise DiagError("no data set named", where="data.name", expected="a datasets id or a folder", usage=True)
        return read_hub(config.name, split or config.split, revision=config.revision, config=config.config, how=how)
    if config.kind not in ("jsonl", "sharegpt"):
        raise DiagError(
            "not a data source of pairs", where="data.kind", got=config.kind, expected="jsonl, sharegpt, hub"
        )
    if not path:
        raise DiagError("no data file named", where="data.path", expected="a file of preference pairs", usage=True)
    return read_pairs(path, how)


def load_data(
    config: DataConfig, *, seed: int = 0, thresholds: Mapping[str, Any] | None = None, supervised: bool = False
) -> PreferenceData:
    """Read and split what the configuration names. Bad rows are listed, not yet judged: write the report, then `check`.

    All rows come back; `tokenise` picks `max_train_pairs` and `max_eval_pairs` of them by a hash of the pair's id, so
    that the same pairs are picked wherever they are in the source. `seed` decides the split and the picks. With
    `supervised` rows of one answer are taken, too; of pairs SFT trains the chosen one.

    Raises:
        DiagError: a source cannot be read, or leaves nothing to train on.
    """
    how = how_to_read(config, thresholds, supervised=supervised)
    train_set = read_source(config, config.path, config.split, how)
    sources = {"train": train_set}
    leaked: list[Row] = []
    if config.eval_path or (config.kind == "hub" and config.eval_split):
        sources["held_out"] = read_source(config, config.eval_path, config.eval_split, how)
        held_out = sources["held_out"].rows
        if sources["held_out"].rows and train_set.rows and sources["held_out"].kind != train_set.kind:
            raise DiagError(
                "the held-out rows are of another kind", got=sources["held_out"].kind, expected=train_set.kind
            )
        train, leaked = without_prompts_of(train_set.rows, held_out)
    elif len(train_set.rows) > 1 and config.eval_share > 0:
        train, held_out = split_pairs(train_set.rows, config.eval_share, seed)
    else:
        train, held_out = list(train_set.rows), []
    if train_set.rows and not train:
        raise DiagError(
            "every training prompt is also in the held-out set", where="data.eval_path", hint="check the paths"
        )
    return PreferenceData(
        train=train,
        held_out=held_out,
        sources=sources,
        leaked=leaked,
        max_train=config.max_train_pairs,
        max_held_out=config.max_eval_pairs,
        seed=seed,
    )
