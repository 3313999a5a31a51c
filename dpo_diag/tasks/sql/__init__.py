"""The embedded text-to-SQL case, the seed case of this project (h2oai/h2o-llmstudio issue 594), small enough for two
cores.

A question names a database; the answer is one SQL query; it is right when sqlite returns what the gold query returns.

    databases.yaml, schemas  the databases: tables, columns, their words, their rows
    intents.yaml, queries    what is asked: gold queries, the wordings of training and, disjoint, of the paraphrased set
    questions                rows: (db, prompt, gold, template, tags), in four sets that can never share a question
    execute                  running a query that a model wrote, sandboxed, and comparing its result with the gold one
    tokenizer, model         the byte-level BPE and the small Llama of this task
    sft                      SFT from scratch
    answering, case          its mistakes on fresh questions as preference pairs, cached
    cache                    building a folder once, whatever crashes or runs beside
    apart                    a step in one process, for launchers that run several

What needs torch imports it inside its functions.
"""

from dpo_diag.tasks.sql.case import SqlCase, prepare_sql_case
from dpo_diag.tasks.sql.execute import ExecutionResult, is_correct, run_query
from dpo_diag.tasks.sql.questions import generate_questions, prompt_rows

__all__ = [
    "ExecutionResult",
    "SqlCase",
    "generate_questions",
    "is_correct",
    "prepare_sql_case",
    "prompt_rows",
    "run_query",
]
