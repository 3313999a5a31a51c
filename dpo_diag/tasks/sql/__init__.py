"""The embedded text-to-SQL case, the seed case of this project (h2oai/h2o-llmstudio issue 594)
made small enough for two cores.

A question names a database; the answer is one SQL query; it is right when sqlite returns what the gold query returns.

    schemas    the databases: tables, columns, their words, their rows
    templates  how questions are worded, for training and, disjoint, for the paraphrased set
    queries    what is asked: one gold query and the phrases that describe it
    questions  rows: (db, prompt, gold, template, tags), in four sets that can never share a question
    execute    running a query that a model wrote, sandboxed, and comparing its result with the gold one
    tokenizer  the byte-level BPE of this task
    model      the small Llama of this task
    answering  greedy answers, batched
    cache      building a folder once, whatever crashes or runs beside
    case_config  seeds, sizes, the recipe
    build      the pipeline in one process, for launchers that run several
    pipeline   SFT from scratch, its mistakes as preference pairs, cached

Everything up to `execute` imports without torch; the rest imports it inside its functions.
"""

from dpo_diag.tasks.sql.execute import ExecutionResult, is_correct, run_query
from dpo_diag.tasks.sql.pipeline import SqlCase, SqlCaseConfig, execution_accuracy, prepare_sql_case, prompt_rows
from dpo_diag.tasks.sql.questions import generate_questions

__all__ = [
    "ExecutionResult",
    "SqlCase",
    "SqlCaseConfig",
    "execution_accuracy",
    "generate_questions",
    "is_correct",
    "prepare_sql_case",
    "prompt_rows",
    "run_query",
]
