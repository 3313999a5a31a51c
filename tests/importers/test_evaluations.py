"""Results of lm-evaluation-harness and Inspect, shaped as versions 0.4.13 and 0.3.285 write them: scores with their n,
answers behind them, in a run of their own or added to one.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.evidence import measures
from dpo_diag.errors import DiagError
from dpo_diag.importers import Options, import_path
from tests.importers.conftest import Importing

TIME = "2026-11-29T21-53-23.008849"
QUESTIONS = 10


def lm_eval(folder: Path, right: int, **more: Any) -> Path:
    """Results of a task of ten questions with two choices, the first `right` of which are answered right."""
    folder.mkdir(parents=True)
    document = {
        "results": {
            "toy": {"name": "toy", "alias": "toy", "sample_len": QUESTIONS, "acc,none": right / QUESTIONS,
                    "acc_stderr,none": 0.1, "acc_norm,none": 0.5, "word_perplexity,none": 9.0},
            "all": {"alias": "all", "acc,none": right / QUESTIONS},
        },
        "group_subtasks": {"all": ["toy"], "toy": []},
        "higher_is_better": {"toy": {"acc": True, "acc_norm": True, "word_perplexity": False}},
        "n-samples": {"toy": {"original": 50, "effective": QUESTIONS}},
        "versions": {"toy": 1.0}, "config": {"model": "hf", "model_args": {}}, "lm_eval_version": "0.4.13",
        "model_name": "out", **more,
    }  # fmt: skip
    (folder / f"results_{TIME}.json").write_text(json.dumps(document, indent=2))
    rows = [
        {
            "doc_id": i, "target": "yes", "filter": "none", "metrics": ["acc", "acc_norm"], "doc_hash": f"{i}" * 64,
            "arguments": {f"gen_args_{c}": {"arg_0": f"Q{i}", "arg_1": f" {w}"} for c, w in enumerate(("yes", "no"))},
            "filtered_resps": [["-0.1" if i < right else "-0.7", "False"], ["-0.5", "False"]],
            "acc": float(i < right), "acc_norm": 0.5,
        }
        for i in range(QUESTIONS)
    ]  # fmt: skip
    (folder / f"samples_toy_{TIME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_two_checkpoints_are_compared_question_by_question(tmp_path: Path, imported: Importing) -> None:
    """2 of 10 right at step 0, the same and six more at step 80: 6 gained and none lost."""
    result, run = imported([lm_eval(tmp_path / "checkpoint-80", 8), lm_eval(tmp_path / "checkpoint-0", 2)])
    assert (result["format"], result["trainer"], result["trainer_version"]) == (
        "lm_eval", "lm-evaluation-harness", "0.4.13",
    )  # fmt: skip
    assert result["notes"] == ["all is the mean of tasks that are here too, and was left out"] * 2
    rows = {(r.step, r.name): (r.value, r.weight) for r in run.history.itertuples() if r.split == "toy"}
    assert rows[0, "score/acc"] == (0.2, 10)
    assert rows[80, "score/acc"] == (0.8, 10)
    assert rows[80, "score/acc_norm"] == (0.5, 10)
    assert rows[80, "lower/word_perplexity"] == (9.0, 10)
    answers = run.outputs.sort_values(["step", "prompt"])
    assert len(answers) == 2 * QUESTIONS
    assert answers.iloc[0][["prompt", "reference", "text", "correct"]].tolist() == ["Q0", "yes", "yes", 1.0]
    assert answers.iloc[9][["prompt", "reference", "text", "correct"]].tolist() == ["Q9", "yes", "no", 0.0]
    (acc,) = [m for m in measures(run) if m.what == "acc"]
    assert acc.method.startswith("same questions")
    assert acc.flips == (0, 6)
    (norm,) = [m for m in measures(run) if m.what == "acc_norm"]
    assert norm.method.startswith("unpaired")


def test_numbers_that_were_written_are_no_choices(tmp_path: Path, imported: Importing) -> None:
    """Three generations of one question, each a number, flat or nested: the first is the answer, not "choice 1".
    Choices have a log-likelihood and whether it is the greedy one; of two as bare numbers the larger is the answer."""
    written = {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": ["."]}}}
    choices = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {w}"} for i, w in enumerate(("yes", "no"))}
    cases = [(written, ["17", "18", "16"], "17"), (written, [["17", "18"]], "17"), (written, [["4"], ["9"]], "4"),
             (choices, [[["-2.5", "False"]], [["-0.5", "True"]]], "no"), (choices, [-0.5, -2.5], "yes")]  # fmt: skip
    folder = lm_eval(tmp_path / "e", 5)
    rows = [
        {"doc_id": i, "target": "17", "filter": "none", "metrics": ["acc"], "acc": 1.0, "arguments": arguments,
         "filtered_resps": responses}
        for i, (arguments, responses, _) in enumerate(cases)
    ]  # fmt: skip
    (folder / f"samples_toy_{TIME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = imported(folder)[1].outputs.sort_values("prompt_id")["text"].tolist()
    assert answers == [said for _, _, said in cases]


def test_a_step_is_read_or_said(tmp_path: Path, imported: Importing) -> None:
    """The model's name before the path, `--step` before both; nothing says one: the start."""
    named = lm_eval(tmp_path / "checkpoint-7" / "x", 5, model_name="out/checkpoint-40")
    assert imported(named)[1].history["step"].unique().tolist() == [40]
    assert imported(named, step=12)[1].history["step"].unique().tolist() == [12]
    result, run = imported(lm_eval(tmp_path / "plain", 5))
    assert run.history["step"].unique().tolist() == [0]
    assert result["steps_from"] == "no name says one: the start (--step N says another)"


def test_two_results_of_one_step_are_refused(tmp_path: Path) -> None:
    folders = [lm_eval(tmp_path / name, 5) for name in ("a", "b")]
    with pytest.raises(DiagError, match="two results say toy score/acc of step 0"):
        import_path(folders, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_results_are_added_to_a_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.write("history", [{"step": 80, "split": "eval", "name": "loss", "value": 0.5, "weight": 4}])
    writer.finish("interrupted")
    folders = [str(lm_eval(tmp_path / f"checkpoint-{step}", right)) for step, right in ((0, 2), (80, 8))]
    for _ in range(2):
        assert main(["import", *folders, "--into", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    run = load_run(tmp_path / "run")
    assert (run.info.kind, run.info.status) == ("trained", "interrupted")
    scores = run.history.loc[run.history["name"] == "score/acc"]
    assert scores["value"].tolist() == [0.2, 0.8]
    assert len(run.outputs) == 2 * QUESTIONS
    assert (run.history["name"] == "loss").sum() == 1


def test_only_results_are_added(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    RunWriter(tmp_path / "run").finish()
    with pytest.raises(DiagError, match=r"only results of an evaluation are added to a run; got log\.jsonl"):
        import_path(log, into=tmp_path / "run")
    with pytest.raises(DiagError, match="not a run folder"):
        import_path(lm_eval(tmp_path / "e", 5), into=tmp_path / "none")


def test_a_log_takes_results_as_its_scores(tmp_path: Path, imported: Importing) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 0.5}\n{"step": 80, "loss": 0.4}\n')
    result, run = imported(log, scores=lm_eval(tmp_path / "checkpoint-80", 8))
    assert result["format"] == "jsonl"
    names = set(run.history["name"])
    assert {"loss", "score/acc"} <= names
    assert len(run.outputs) == QUESTIONS


def inspect_log(**more: Any) -> dict[str, Any]:
    """Three questions, two scorers; grades as letters, one as a number."""
    grades = [("q0", "C", "yes"), ("q1", "I", "no"), ("q2", "P", "maybe")]
    metrics = {"accuracy": {"name": "accuracy", "value": 0.5, "params": {}}, "stderr": {"name": "stderr", "value": 0.3}}
    return {
        "version": 2, "status": "success",
        "eval": {"task": "evals/toy", "model": "hf//models/checkpoint-80", "model_args": {},
                 "packages": {"inspect_ai": "0.3.285"}},
        "plan": {}, "results": {"total_samples": 3, "completed_samples": 3, "scores": [
            {"name": "match", "scorer": "match", "metrics": metrics},
            {"name": "model_graded", "scorer": "model_graded", "metrics": metrics},
        ]},
        "samples": [
            {"id": name, "epoch": 1, "input": [{"role": "user", "content": f"ask {name}"}], "target": "yes",
             "output": {"completion": text}, "scores": {"match": {"value": grade, "answer": text}}}
            for name, grade, text in grades
        ],
        **more,
    }  # fmt: skip


def check_inspect(run: Any) -> None:
    rows = {(r.step, r.split, r.name): (r.value, r.weight) for r in run.history.itertuples()}
    assert rows == {
        (80, "evals_toy", "score/accuracy"): (0.5, 3), (80, "evals_toy", "score/model_graded_accuracy"): (0.5, 3),
    }  # fmt: skip
    answers = run.outputs.sort_values("prompt_id")
    assert answers["prompt_id"].tolist() == ["evals_toy:q0", "evals_toy:q1", "evals_toy:q2"]
    assert answers["correct"].tolist() == [1.0, 0.0, 0.5]
    assert answers["text"].tolist() == ["yes", "no", "maybe"]
    assert answers["prompt"].tolist() == ["ask q0", "ask q1", "ask q2"]


def test_inspects_json_log(tmp_path: Path, imported: Importing) -> None:
    (tmp_path / "log.json").write_text(json.dumps(inspect_log()))
    result, run = imported(tmp_path / "log.json")
    assert (result["format"], result["trainer_version"], result["skipped"]) == ("inspect", "0.3.285", [])
    check_inspect(run)


def zstandard_zip(files: dict[str, bytes]) -> bytes:
    """A zip archive whose members are compressed with method 93, by the format's definition."""
    body, directory = b"", b""
    for name, data in files.items():
        packed = pa.Codec("zstd").compress(data, asbytes=True)
        about = struct.pack("<5H3I2H", 63, 0, 93, 0, 0, zlib.crc32(data), len(packed), len(data), len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 63) + about
        directory += struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\x03\x04" + about + name.encode() + packed
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return body + directory + end


def test_inspects_archive(tmp_path: Path, imported: Importing) -> None:
    document = inspect_log()
    samples = {f"samples/{s['id']}_epoch_1.json": json.dumps(s).encode() for s in document.pop("samples")}
    header = json.dumps(document).encode()
    files = {"_journal/start.json": b"{}", **samples, "summaries.json": b"[]", "header.json": header}
    (tmp_path / "log.eval").write_bytes(zstandard_zip(files))
    result, run = imported(tmp_path / "log.eval")
    assert result["skipped"] == []
    check_inspect(run)


def test_a_damaged_member_is_told_and_the_rest_is_read(tmp_path: Path, imported: Importing) -> None:
    document = inspect_log()
    samples = {f"samples/{s['id']}_epoch_1.json": json.dumps(s).encode() for s in document.pop("samples")}
    data = bytearray(zstandard_zip({**samples, "header.json": json.dumps(document).encode()}))
    data[data.index(b"\x28\xb5\x2f\xfd")] ^= 0xFF  # the first member's frame
    (tmp_path / "log.eval").write_bytes(bytes(data))
    result, run = imported(tmp_path / "log.eval")
    assert result["skipped"]
    assert all("q0_epoch_1.json" in str(row) for row in result["skipped"])
    assert len(run.outputs) == 2


def test_an_evaluation_that_did_not_end_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(json.dumps(inspect_log(status="error", results=None)))
    with pytest.raises(DiagError, match=r"the evaluation has no results; .*got status error; hint: run it to its end"):
        import_path(tmp_path / "log.json", tmp_path / "run", options=Options())


def test_a_question_that_stands_twice_in_a_task_is_two(tmp_path: Path, imported: Importing) -> None:
    """Question 9 is question 0 once more, which is answered right where 9 is answered wrong: still ten questions, and
    paired: 2 of 10 become 8, six gained and none lost. A task's name that is no file name has no samples."""
    folders = [lm_eval(tmp_path / "checkpoint-80", 8), lm_eval(tmp_path / "checkpoint-0", 2)]
    for folder in folders:
        samples = folder / f"samples_toy_{TIME}.jsonl"
        samples.write_text(samples.read_text().replace("9" * 64, "0" * 64))
        results = folder / f"results_{TIME}.json"
        document = json.loads(results.read_text())
        document["results"]["a/b"] = {"alias": "a/b", "acc,none": 0.5}
        results.write_text(json.dumps(document))
    _, run = imported(folders)
    assert not run.outputs.duplicated(["step", "prompt_id", "sample"]).any()
    (acc,) = [m for m in measures(run) if (m.what, m.split) == ("acc", "toy")]
    assert acc.method.startswith("same questions")
    assert acc.flips == (0, 6)
