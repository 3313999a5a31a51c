"""The records contract, declared once: tables, columns, types, units, nullability, version.

A row's identity is its table's `key`. Rows of different `split` have different origins (a training batch, a fixed
evaluation set, an imported log) and are never pooled. What a source does not know is null.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SIDES = ("chosen", "rejected")
TRAIN_SPLIT = "train"
EVAL_SPLIT = "eval"


@dataclass(frozen=True)
class Column:
    """One column: its arrow type, its meaning, whether a source may leave it null, and the unit of a quantity."""

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = True
    unit: str | None = None


@dataclass(frozen=True)
class Table:
    """One table of a run folder, with the columns that identify a row."""

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.columns]


@dataclass(frozen=True)
class SideTable(Table):
    """A table that is one file of the run folder, read and written whole; see side_tables.

    `replaced_by`: new rows take the place of those that agree in these columns. `hint`: how to make the file again.
    `older`: the file of earlier versions, read where there is no other.
    """

    file: str
    replaced_by: tuple[str, ...]
    hint: str
    older: str | None = None


_CATEGORY = pa.dictionary(pa.int32(), pa.string())

_STEP = Column(
    "step",
    pa.int64(),
    "optimizer steps done when the row was measured, 0 = before training; split train: the step that used the batch",
    False,
    unit="optimizer steps",
)
_SPLIT = Column(
    "split", _CATEGORY, "train (training batches), eval or eval_<name> (fixed sets), or an import's name", False
)
_PAIR = Column("pair_id", _CATEGORY, "content hash of prompt, chosen, rejected", False)
_SIDE = Column("side", _CATEGORY, "chosen | rejected; tokens of a supervised run: response", False)
_ROLE = Column("role", _CATEGORY, "policy | ref (ref rows stand once per reference and set)", False)

HISTORY = Table(
    "history",
    ("step", "split", "name"),
    (
        _STEP,
        Column("epoch", pa.float64(), "passes over the training set", unit="epochs"),
        _SPLIT,
        Column(
            "name",
            _CATEGORY,
            "metric without a train/ or eval_ prefix, e.g. loss, rewards/margins, score/accuracy",
            False,
        ),
        Column("value", pa.float64(), "the value; NaN and infinities stay as they are"),
        Column("weight", pa.float64(), "pairs, tokens or answers that the value is a mean over"),
        Column("derived", pa.bool_(), "true where an importer computed the value from others by an exact identity"),
    ),
)

PAIRS = Table(
    "pairs",
    ("step", "split", "role", "pair_id", "side"),
    (
        _STEP,
        _SPLIT,
        _ROLE,
        _PAIR,
        _SIDE,
        Column("sum_logp", pa.float64(), "sum over the response's tokens of log p(token)", unit="nats"),
        Column("n_tokens", pa.int32(), "response tokens that the loss counts", unit="tokens"),
        Column("n_bytes", pa.int32(), "UTF-8 bytes of those tokens' text", unit="bytes"),
        Column("n_truncated", pa.int32(), "response tokens cut off before the model saw them", unit="tokens"),
        Column("top1", pa.float64(), "share of response tokens whose target is the model's first choice", unit="share"),
        Column(
            "top5",
            pa.float64(),
            "share of response tokens whose target is among the model's first five choices",
            unit="share",
        ),
        Column("entropy_sum", pa.float64(), "sum over response positions of the next-token entropy", unit="nats"),
        Column("greedy_logp_sum", pa.float64(), "sum over response positions of the largest log-prob", unit="nats"),
        Column("kl_reverse_sum", pa.float64(), "sum over response positions of KL(policy || reference)", unit="nats"),
        Column("kl_forward_sum", pa.float64(), "sum over response positions of KL(reference || policy)", unit="nats"),
        Column(
            "loss_logp",
            pa.float64(),
            "the log-prob that the loss used, where it is not sum_logp (ld_alpha)",
            unit="nats",
        ),
        Column("weight", pa.float64(), "factor on this pair's loss (WPO), on both sides' rows"),
        Column("beta", pa.float64(), "beta in this pair's loss, where each pair has its own (ε-DPO); both sides"),
    ),
)

TOKENS = Table(
    "tokens",
    ("step", "split", "role", "pair_id", "side", "position"),
    (
        _STEP,
        _SPLIT,
        _ROLE,
        _PAIR,
        _SIDE,
        Column("position", pa.int32(), "0 = first response token", False),
        Column("token_id", pa.int32(), "vocabulary id of the target", False),
        Column("logp", pa.float32(), "log p(target | prompt, earlier response tokens)", False, unit="nats"),
        Column("entropy", pa.float32(), "entropy of the next-token distribution", unit="nats"),
        Column("is_top1", pa.bool_(), "the target is the model's first choice"),
        Column("greedy_logp", pa.float32(), "log-prob of the model's first choice there", unit="nats"),
        Column("logp_no_prompt", pa.float32(), "log p(target | earlier response tokens alone)", unit="nats"),
        Column("kl_reverse", pa.float32(), "KL(policy || reference) of the next-token distributions", unit="nats"),
        Column("kl_forward", pa.float32(), "KL(reference || policy) of the next-token distributions", unit="nats"),
    ),
)

OUTPUTS = Table(
    "outputs",
    ("step", "model", "prompt_id", "sample"),
    (
        _STEP,
        Column("model", _CATEGORY, "policy | ref | sft or any other column that is compared", False),
        Column("prompt_id", _CATEGORY, "id of the fixed prompt", False),
        Column("sample", pa.int32(), "0 = greedy or first sample", False),
        Column("prompt", _CATEGORY, "the prompt as the model saw it"),
        Column("tags", pa.list_(pa.string()), "what kind of prompt this is: like_training, paraphrased, ..."),
        Column("reference", _CATEGORY, "reference answer, where the prompt set has one"),
        Column("text", pa.string(), "what the model wrote, special tokens removed", False),
        Column("token_ids", pa.list_(pa.int32()), "the new tokens"),
        Column("finish_reason", _CATEGORY, "stop (end token) | length"),
        Column("n_tokens", pa.int32(), "new tokens, the end token included", unit="tokens"),
        Column("sum_logp", pa.float64(), "log-prob of the new tokens under the model that wrote them", unit="nats"),
        Column("entropy_sum", pa.float64(), "entropy summed over the new tokens' positions", unit="nats"),
        Column("correct", pa.float64(), "checker's verdict in [0, 1]; null without a checker", unit="share"),
        Column(
            "decoding_hash", _CATEGORY, "hash of the decoding settings: answers of different hashes are not compared"
        ),
        Column("seed", pa.int64(), "seed of a sampled answer; null when greedy"),
    ),
)

TEXTS = Table(
    "texts",
    ("split", "pair_id"),
    (
        _SPLIT,
        _PAIR,
        Column("prompt", pa.string(), "prompt text (messages are rendered to text)"),
        Column("chosen", pa.string(), "chosen response text"),
        Column("rejected", pa.string(), "rejected response text"),
        Column("beside", pa.string(), "hash of what else the model is shown: tools, options, images; null for nothing"),
    ),
)

ALERTS = Table(
    "alerts",
    ("step", "code", "message"),
    (
        _STEP,
        Column("code", _CATEGORY, "name of the guard", False),
        Column("message", pa.string(), "what it said, with its numbers", False),
        Column("evidence", pa.string(), "JSON object: the numbers that made it say so"),
    ),
)

TABLES: dict[str, Table] = {t.name: t for t in (HISTORY, PAIRS, TOKENS, OUTPUTS, TEXTS, ALERTS)}

CHES = SideTable(
    "ches",
    ("split", "pair_id"),
    (
        Column("pair_id", pa.string(), "content hash of prompt, chosen, rejected", False),
        Column("ches", pa.float64(), "CHES (Razin et al. 2024, arXiv 2410.08847) under the reference, before training"),
        Column("ln_ches", pa.float64(), "the same per token of both answers"),
        Column("n_chosen", pa.float64(), "response tokens of chosen", unit="tokens"),
        Column("n_rejected", pa.float64(), "response tokens of rejected", unit="tokens"),
        Column("split", pa.string(), "the set", False),
    ),
    "ches.parquet",
    ("split",),
    "remove it and score the reference again (dpo-score ches=true)",
    "ches.csv",
)

ANSWER_LOGPS = SideTable(
    "answer_logps",
    ("model", "step", "of_model", "of_step", "prompt_id", "sample"),
    (
        Column("model", pa.string(), "who gives the log-prob", False),
        Column("step", pa.int64(), "its step", False),
        Column("of_model", pa.string(), "who wrote the answer", False),
        Column("of_step", pa.int64(), "its step", False),
        Column("prompt_id", pa.string(), "id of the fixed prompt", False),
        Column("sample", pa.int64(), "0 = greedy or first sample", False),
        Column("sum_logp", pa.float64(), "log-prob of an answer under a model that did not write it", unit="nats"),
    ),
    "answer_logps.parquet",
    ("model", "step", "of_model", "of_step", "prompt_id", "sample"),
    "remove it and run dpo-generate with across=true again",
)
