"""Inspect's eval logs: one task of one model, as JSON or as an .eval archive (unpacked: header.json, samples/*.json).

A scorer's metrics stand in results; a sample holds the scorer's value of each question and epoch: a number, a truth
value, or C, I, P and N for correct, incorrect, partial and no answer, which count as 1, 0, 0.5 and 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.task_results import TaskResults, plain_mapping, step_of, text_of
from dpo_diag.records.text_files import whole

HEADER, SAMPLES = "header.json", "samples"
GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Inspect's own values of a grade, as its value_to_float reads them."""
_SPREAD = ("stderr", "std", "var", "bootstrap_stderr")
"""Metrics that say how sure another one is."""


def read_inspect(path: Path, options: Options) -> Parsed:
    """A log file, or the folder that an .eval archive holds.

    Raises:
        DiagError: no log of Inspect's, or one that has no results (the evaluation did not end).
    """
    file = path if path.is_file() else path / HEADER
    parsed = Parsed.of("inspect", [file], options, "inspect")
    document = _document(file, parsed)
    about = plain_mapping(document.get("eval"))
    results = plain_mapping(document.get("results"))
    scores = [s for s in results.get("scores") or [] if isinstance(s, Mapping)]
    if not about.get("task"):
        raise DiagError("no log of Inspect's", where=file, expected='"eval": {"task", "model"}, "results"')
    if not scores:
        said = f"status {document.get('status')}"
        raise DiagError(
            "the evaluation has no results", where=file, got=said, hint="run it to its end (inspect eval-retry)"
        )
    task, model = str(about["task"]), about.get("model")
    arguments = plain_mapping(about.get("model_args"))
    step, parsed.steps_from = step_of(file, options, model, *arguments.values())
    parsed.version = plain_mapping(about.get("packages")).get("inspect_ai") or parsed.version
    if model:
        parsed.facts.model = {"name": str(model)}
    found = TaskResults(step)
    samples = list(_samples(path, document, parsed))
    questions = len({str(s.get("id")) for s in samples}) or None
    first = str(scores[0].get("name"))
    for scorer in scores:
        n = scorer.get("scored_samples") or questions or results.get("completed_samples")
        for name, metric in plain_mapping(scorer.get("metrics")).items():
            if name in _SPREAD:
                continue
            # The first scorer's metrics keep their plain names; of further ones the scorer's name stands before.
            shown = name if scorer.get("name") == first else f"{scorer.get('name')}_{name}"
            if not found.score(task, shown, plain_mapping(metric).get("value"), n):
                parsed.skipped.add(None, "not a number", file=f"{task}, {shown}")
    bad = 0
    for sample in samples:
        score = plain_mapping(plain_mapping(sample.get("scores")).get(first))
        value = score.get("value")
        verdict = GRADES.get(value, value) if isinstance(value, str) else value
        epoch = sample.get("epoch")
        bad += not found.answer(
            task, str(sample.get("id")), verdict, _answer(sample, score), prompt=_input(sample.get("input")),
            reference=text_of(sample.get("target")), sample=epoch - 1 if isinstance(epoch, int) and epoch > 0 else 0,
        )  # fmt: skip
    if bad:
        parsed.skipped.add(None, f"{bad} samples whose score is no share", file=first)
    return found.put_into(parsed)


def _document(file: Path, parsed: Parsed) -> Mapping[str, Any]:
    try:
        return _told(parse_json(whole(file, parsed.skipped)), file.name, parsed)
    except ValueError as error:
        raise DiagError("the log is broken JSON", where=file, got=error, hint="copy it again") from error


def _told(document: Any, name: str, parsed: Parsed) -> Mapping[str, Any]:
    parsed.skipped.add_repeated(document, file=name)
    return plain_mapping(document)


def _samples(path: Path, document: Mapping[str, Any], parsed: Parsed) -> Iterator[Mapping[str, Any]]:
    yield from (s for s in document.get("samples") or [] if isinstance(s, Mapping))
    for file in sorted((path / SAMPLES).glob("*.json")) if path.is_dir() else ():
        try:
            yield _told(parse_json(whole(file, parsed.skipped)), f"{SAMPLES}/{file.name}", parsed)
        except ValueError:
            parsed.skipped.add(None, "broken JSON", file=f"{SAMPLES}/{file.name}")


def _answer(sample: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    output = plain_mapping(sample.get("output"))
    if isinstance(output.get("completion"), str):
        return str(output["completion"])
    choices = output.get("choices")
    message = plain_mapping(plain_mapping(choices[0]).get("message")) if isinstance(choices, list) and choices else {}
    return _content(message.get("content")) or text_of(score.get("answer"))


def _input(value: Any) -> str | None:
    """The question: a text, or the messages' texts."""
    if isinstance(value, str):
        return value
    messages = [_content(m.get("content")) for m in value if isinstance(m, Mapping)] if isinstance(value, list) else []
    return "\n".join(m for m in messages if m) or None


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = (
        [str(p.get("text")) for p in content if isinstance(p, Mapping) and p.get("text")]
        if isinstance(content, list)
        else []
    )
    return "".join(parts)


def _is_log(head: Head) -> bool:
    document = head.document
    if isinstance(document, Mapping):
        return isinstance(document.get("eval"), Mapping) and "task" in document["eval"] and "status" in document
    text = head.text[:2000]
    return head.is_json and '"status"' in text and '"eval"' in text and '"task"' in head.text and '"plan"' in head.text


def _is_unpacked(folder: Path) -> bool:
    header = folder / HEADER
    return header.is_file() and _is_log(Head(header))


register(
    LogFormat(
        name="inspect",
        description="Inspect's eval log (.eval or .json)",
        trainers=("inspect",),
        file_name="2026-01-01T00-00-00+00-00_task_id.json",
        example='{"version": 2, "status": "success", "eval": {"task": "gsm8k", "model": "hf/checkpoint-80"}, '
        '"plan": {}, "results": {"scores": [{"name": "match", "metrics": {"accuracy": {"value": 0.5}}}]}}\n',
        order=12,
        why="an object with eval.task and status",
        sniff=_is_log,
        read=read_inspect,
        rounding=2,
        reads_folders=True,
        sniff_folder=_is_unpacked,
    )
)
