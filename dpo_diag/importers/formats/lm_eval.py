"""lm-evaluation-harness: results_<time>.json of one model, with samples_<task>_<time>.jsonl beside it (--log_samples).

A task's `acc,none` is metric and filter; `n-samples` says over how many questions. A row of samples holds the prompt as
the model saw it, what it answered (log-likelihoods of the choices, or text), and the metrics of that question. Groups
(mmlu) are means over tasks that stand there too: they are left out where the tasks are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.numbers import number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.task_results import TaskResults, metric_key, plain_mapping, step_of, text_of
from dpo_diag.records.row_files import readable_rows
from dpo_diag.records.text_files import whole

_ABOUT = ("alias", "sample_len", "sample_count", "name")
"""Entries of a task's results that are no metrics."""


def read_lm_eval(path: Path, options: Options) -> Parsed:
    """One results file, or the newest in a folder, with the samples of the same evaluation.

    Raises:
        DiagError: no results, or broken JSON.
    """
    file = path if path.is_file() else _newest(path)
    parsed = Parsed.of("lm_eval", [file], options, "lm-evaluation-harness")
    try:
        document = parse_json(whole(file, parsed.skipped))
    except ValueError as error:
        raise DiagError("the results are broken JSON", where=file, got=error, hint="copy them again") from error
    parsed.skipped.add_repeated(document)
    results = plain_mapping(plain_mapping(document).get("results"))
    if not results:
        raise DiagError(
            "no results of lm-evaluation-harness", where=file, expected='"results": {task: {metric: value}}'
        )
    config = plain_mapping(document.get("config"))
    step, said = step_of(file, options, document.get("model_name"), config.get("model_args"))
    parsed.version = str(document["lm_eval_version"]) if document.get("lm_eval_version") else parsed.version
    parsed.steps_from = said
    if document.get("model_name"):
        parsed.facts.model = {"name": str(document["model_name"])}
    found = TaskResults(step)
    counts, better = plain_mapping(document.get("n-samples")), plain_mapping(document.get("higher_is_better"))
    groups = {
        g for g, tasks in plain_mapping(document.get("group_subtasks")).items() if tasks and set(tasks) & set(results)
    }
    for task, metrics in results.items():
        if task in groups:
            parsed.notes.append(f"{task} is the mean of tasks that are here too, and was left out")
            continue
        for metric, value in plain_mapping(metrics).items():
            if metric in _ABOUT or metric.partition(",")[0].endswith("_stderr"):
                continue
            wanted = plain_mapping(better.get(task)).get(metric.partition(",")[0], True)
            n = plain_mapping(counts.get(task)).get("effective")
            if not found.score(task, metric, value, n, better=wanted is not False):
                parsed.skipped.add(None, "not a number", file=f"{task}, {metric}")
    for task in results:
        for samples in _samples_of(file, str(task)):
            parsed.files.append(samples)
            _take_samples(samples, str(task), found, parsed)
    return found.put_into(parsed)


def _take_samples(file: Path, task: str, found: TaskResults, parsed: Parsed) -> None:
    """The answers under the task's first filter, with its first metric that is a share as their verdict."""
    taken: tuple[str, str] | None = None
    bad = 0
    for _line, row in readable_rows(file, parsed.skipped):
        filtered = str(row.get("filter") or "none")
        metrics = row.get("metrics") or [k for k in ("acc", "exact_match") if k in row]
        if taken is None:
            known = [str(m) for m in metrics if isinstance(row.get(str(m)), (int, float))]
            if not known:
                bad += 1
                continue
            taken = (filtered, known[0])
            parsed.details[f"answers_of_{task}"] = metric_key(f"{known[0]},{filtered}")
        if filtered != taken[0]:
            continue
        question = str(row.get("doc_hash") or row.get("doc_id"))[:16]
        answer = _answer(row)
        prompt, target = _prompt(row.get("arguments")), row.get("target")
        reference = None if target is None else text_of(target)
        bad += not found.answer(task, question, row.get(taken[1]), answer, prompt=prompt, reference=reference)
    if bad:
        parsed.skipped.add(None, f"{bad} samples without a metric between 0 and 1", file=file.name)


def _answer(row: Mapping[str, Any]) -> str:
    """The text that was written, of several the first; of choices the one that is most likely, by its text."""
    responses = row.get("filtered_resps") or row.get("resps") or []
    values = [_likelihood(r) for r in responses] if isinstance(responses, list) else []
    known = [value for value in values if value is not None]
    if len(known) > 1 and len(known) == len(values):
        best = known.index(max(known))
        return _choices(row.get("arguments"), best) or f"choice {best}"
    return text_of(responses)


def _likelihood(response: Any) -> float | None:
    """A choice's log-likelihood; None for a text that was written, which may be a number, too ("18"). The harness gives
    a choice as [log-likelihood, whether it is the greedy one]."""
    while isinstance(response, (list, tuple)) and len(response) == 1:
        response = response[0]
    if isinstance(response, float):
        return response
    is_choice = isinstance(response, (list, tuple)) and len(response) == 2 and str(response[1]) in ("True", "False")
    return number(response[0]) if is_choice else None


def _arguments(arguments: Any) -> Iterator[list[Any]]:
    """Each request's arguments: newer versions name them gen_args_0, arg_0; older ones list them."""
    requests = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    for request in requests if isinstance(requests, list) else []:
        yield (
            list(request.values())
            if isinstance(request, Mapping)
            else list(request)
            if isinstance(request, list)
            else []
        )


def _prompt(arguments: Any) -> str | None:
    return next((str(a[0]) for a in _arguments(arguments) if a and isinstance(a[0], str)), None)


def _choices(arguments: Any, which: int) -> str | None:
    texts = [a[1] for a in _arguments(arguments) if len(a) > 1 and isinstance(a[1], str)]
    return texts[which].strip() if which < len(texts) else None


def _samples_of(file: Path, task: str) -> list[Path]:
    """The task's samples of the same evaluation: the same time in the name."""
    time = file.name.removeprefix("results").removesuffix(".json")
    name = f"samples_{task}{time}.jsonl"
    return [p for p in file.parent.iterdir() if p.name == name and p.is_file()]


def _results_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("results_*.json"), *folder.glob("*/results_*.json")], key=lambda p: p.name)


def _newest(folder: Path) -> Path:
    files = _results_in(folder)
    if not files:
        raise DiagError("no results of lm-evaluation-harness", where=folder, expected="results_<time>.json")
    if len({f.parent for f in files}) > 1:
        models = ", ".join(sorted({f.parent.name for f in files}))
        raise DiagError(
            "results of several models", where=folder, got=models, hint="name each one's folder", usage=True
        )
    return files[-1]


def _is_results(head: Head) -> bool:
    document = head.document
    if isinstance(document, Mapping):
        return isinstance(document.get("results"), Mapping) and bool(
            {"versions", "n-shot", "n-samples"} & set(document)
        )
    return head.is_json and head.text.lstrip("{ \r\n\t").startswith('"results"') and '"alias"' in head.text


register(
    LogFormat(
        name="lm_eval",
        description="lm-evaluation-harness: results_<time>.json with its samples",
        trainers=("lm-evaluation-harness",),
        file_name="results_2026-01-01T00-00-00.000000.json",
        example='{"results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1}}, '
        '"n-samples": {"arc_easy": {"original": 2376, "effective": 26}}, "versions": {"arc_easy": 1.0}}\n',
        order=12,
        why="an object with results and versions of tasks",
        sniff=_is_results,
        read=read_lm_eval,
        rounding=2,
        reads_folders=True,
        sniff_folder=lambda folder: bool(_results_in(folder)),
    )
)
