"""One run: the frames of its records, and those that the analysis makes of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dpo_diag import records
from dpo_diag.records.remote import at_hand

if TYPE_CHECKING:
    import pandas as pd

    from dpo_diag.frames.findings import Findings
    from dpo_diag.outputs.compare import Comparison


class Run(records.Run):
    """A run folder, read only. Frames are read when first asked for and kept.

    `.history .pairs .tokens .outputs .texts .alerts` are the tables of its records; an absent table is an empty frame
    with its columns. `.pairs` and `.tokens` hold the policy's rows; the reference's values stand beside them as
    `ref_sum_logp` (pairs: also ref_n_tokens, ref_entropy_sum, ...) and `ref_logp` (tokens), null where the run has
    none. `.read` selects columns, steps, splits and roles of a table before anything reaches memory. Made of them:
    `.metrics` (a column per metric), `.pairs_wide()` (a row per pair and step), `.tokens_text()`, `.explain()`,
    `.compare_outputs()`;
    `.describe()` says what every column is.
    """

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        steps: Iterable[int] | None = None,
        splits: Iterable[str] | None = None,
        roles: Iterable[str] | None = None,
    ) -> pd.DataFrame:
        """Rows of a table as a DataFrame, filtered while reading; raw, i.e. reference rows are rows and nothing is
        joined. Whole numbers and truth values that may be unknown are `Int32`, `Int64`, `boolean`; text is `str`, in
        `tokens` categories for memory's sake."""
        from dpo_diag.records.tables import to_frame

        rows = self.arrow(table, columns, steps, splits, roles)
        return to_frame(rows, keep_categories=table == "tokens", nullable=True)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """`history` as one row per step and split, with a column per metric: `step`, `split`, `epoch`, then the
        metrics in the order of the metric table, then names that it does not know, NaN where a row lacks one.
        Empty for a run without history."""
        from dpo_diag.frames.wide import metrics_wide

        return metrics_wide(self.history)

    def pairs_wide(
        self,
        columns: Sequence[str] | None = None,
        steps: Iterable[int] | None = None,
        splits: Iterable[str] | None = None,
    ) -> pd.DataFrame:
        """What each pair did at each step, one row per (step, split, pair_id), its two sides in columns.

        The numbers are those of `explain`, made by the same code: `chosen_ce` and `rejected_ce` (nats per `unit`, which
        is a byte where the source counted no tokens), `chosen_ppl` = exp(chosen_ce), `a` and `b` (log-ratios to the
        reference that the loss sees, nats), `margin` = beta (a - b), `loss`. NaN is what the records cannot tell: of a
        run without reference a, b and margin, of a loss that couples the pairs of a batch or of an unknown one loss.
        A pair of which a side is missing at a step has no row there. An SFT term weighs each pair by the step's tokens.

        Args:
            columns: some of the columns, in this order; default all that `describe` lists.
            steps: only these steps; the files of others are not opened, but for the reference's rows.
            splits: only these splits.

        Raises:
            DiagError: a column that there is not.
        """
        from dpo_diag.frames.wide import pairs_wide

        return pairs_wide(self, columns, steps, splits)

    def tokens_text(self, steps: Iterable[int] | None = None, splits: Iterable[str] | None = None) -> pd.DataFrame:
        """`tokens` with a column `text`: what each token is written as, null for an id that the vocabulary lacks.

        Records hold ids. The texts come from the run's vocab.json, from the tokenizer.json beside a checkpoint of the
        run, or from that of the tokenizer which run.json names; or from the responses, where their words align with the
        ids without contradiction.

        Args:
            steps, splits: only these, selected while reading.

        Raises:
            DiagError: the run holds no such token rows, or nothing tells the tokens' texts.
        """
        from dpo_diag.frames.token_texts import tokens_with_text

        return tokens_with_text(self, steps, splits)

    def explain(
        self,
        from_step: int | str | None = None,
        to_step: int | None = None,
        split: str | None = None,
        thresholds: Mapping[str, Any] | None = None,
    ) -> Findings:
        """Why loss and perplexities moved between two steps, in which pairs and tokens, and whether it is harm: the
        document of `dpo-diag explain --json`, made anew.

        Args:
            from_step: default "ref", the reference, wherever it was measured and is what the policy started from, else
                the first measured step.
            to_step: default the last measured step.
            split: default a fixed evaluation set before anything else.
            thresholds: overrides by name (`conf/checks/default.yaml` lists them).

        Raises:
            DiagError: no such split, step or threshold.
        """
        from dpo_diag.diagnosis import explain_run
        from dpo_diag.frames.findings import Findings

        return Findings(explain_run(records.Run(self.path), from_step, to_step, split, thresholds))

    def compare_outputs(self, baseline: str | int | None = None, to_step: int | None = None) -> Comparison:
        """What the checkpoints wrote to the fixed prompts, compared: frames `changed`, `changes`, `tags`, `behaviours`,
        `phrases`, `phrases_fallen`, `by_checkpoint` and what they say in a `sentence`, as `dpo-diag outputs`.

        Args:
            baseline: step or model that changes are measured from; default the reference, else the SFT model, else the
                first step.
            to_step: the policy's step to judge; default its last.

        Raises:
            DiagError: no answers, answers of different decoding settings, an unknown step or model.
        """
        from dpo_diag.outputs.compare import comparison

        return comparison(records.Run(self.path), baseline=baseline, to_step=to_step)

    def describe(self, table: str | None = None) -> pd.DataFrame:
        """What each column is, one row per column: `table`, `column`, `dtype`, `unit`, `meaning`; of metrics also which
        way is `better`.

        The record tables and `pairs_wide` are described by their schemas, `metrics` by the metric table (those
        that this run logged).

        Args:
            table: history, pairs, tokens, outputs, texts, alerts, metrics or pairs_wide; default all that this run has.

        Raises:
            DiagError: no such table.
        """
        from dpo_diag.frames.described import described

        return described(self, table)

    def _repr_html_(self) -> str:
        from dpo_diag.frames.page import run_html

        return run_html(self)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder, or one behind a URL that fsspec opens (its records are brought here first).

    Raises:
        DiagError: anything that is not one.
    """
    return Run(at_hand(path))
