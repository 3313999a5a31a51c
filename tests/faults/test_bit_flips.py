"""One flipped bit in any file of a run: found, or without effect on what is read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_diag.commands.gate import gate
from dpo_diag.diagnosis import explain
from dpo_diag.errors import DamagedRecords, DiagError
from dpo_diag.outputs.answers import Checkpoint
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.checksums import read_json, read_yaml, yaml_bytes
from dpo_diag.records.files import write_bytes, write_json
from dpo_diag.records.health import check_run
from dpo_diag.records.jobs import begin_job, job_state
from dpo_diag.records.schemas import ANSWER_LOGPS, CHES, TABLES
from dpo_diag.records.side_tables import read_side_table, write_side_table
from dpo_diag.report.vocabulary import load_vocabulary
from dpo_diag.review import judgements

SIDES = ("chosen", "rejected")
IDS = ("p", "q", "r")


def write_run(folder: Path) -> None:
    """Every kind of file that a run holds: history/ is one merged file, the other tables are files of one step."""
    rng = np.random.default_rng(0)
    writer = RunWriter(folder)
    for step in range(16):
        rows = [{"step": step, "split": "train", "name": n, "value": rng.normal()} for n in ("loss", "grad_norm")]
        writer.write("history", rows, "train")
    for step in (0, 10):
        rows = [
            {"step": step, "split": "eval", "role": role, "pair_id": pair, "side": side, "sum_logp": -10 * rng.random(),
             "n_tokens": 4, "n_bytes": 12, "top1": 0.5}
            for role in (("policy", "ref") if step == 0 else ("policy",)) for pair in IDS for side in SIDES
        ]  # fmt: skip
        writer.write("pairs", rows, "eval")
        key = ("step", "split", "role", "pair_id", "side")
        tokens = [{**{k: row[k] for k in key}, "position": i, "token_id": 5 + i, "logp": -rng.random()}
                  for row in rows for i in range(4)]  # fmt: skip
        writer.write("tokens", tokens, "eval")
    answers = [{"step": 10, "model": "policy", "prompt_id": p, "sample": 0, "text": f"answer {p}"} for p in IDS]
    writer.write("outputs", answers, "policy")
    texts = [{"split": "eval", "pair_id": p, "prompt": "q?", "chosen": "yes", "rejected": "no"} for p in IDS]
    writer.write("texts", texts, "eval")
    writer.write("alerts", [{"step": 3, "code": "loss_is_nan", "message": "the loss is NaN"}])
    writer.finish()
    ches = [
        {"pair_id": p, "ches": 1.5, "ln_ches": 0.5, "n_chosen": 4.0, "n_rejected": 4.0, "split": "eval"} for p in IDS
    ]
    write_side_table(folder, CHES, _frame(ches))
    of = {"model": "ref", "step": 0, "of_model": "policy", "of_step": 10, "sample": 0, "sum_logp": -3.5}
    write_side_table(folder, ANSWER_LOGPS, _frame([{**of, "prompt_id": p} for p in IDS]))
    write_json(folder / "vocab.json", {str(i): f"t{i}" for i in range(5, 9)})
    write_json(folder / "findings.json", explain(folder))
    write_json(folder / "data_report.json", {"n": 3, "dropped": {"empty": 0}})
    (folder / ".hydra").mkdir()
    write_bytes(folder / ".hydra" / "config.yaml", yaml_bytes("loss:\n  beta: 0.1\nseed: 42\n"))
    write_bytes(folder / ".hydra" / "overrides.yaml", yaml_bytes("- loss.beta=0.1\n"))
    begin_job(folder, 0)
    a, b = Checkpoint("policy", 0), Checkpoint("policy", 10)
    judgements.append(folder, judgements.Judgement("ann", "person", "i", "p", 0, a, b, "a", "b", "2026-01-01"))


def _frame(rows: list[dict[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(rows)


def readers(folder: Path) -> dict[Path, Callable[[], Any]]:
    """File -> what is read from it."""
    run = load_run(folder)
    found: dict[Path, Callable[[], Any]] = {folder / "run.json": lambda: load_run(folder).meta}
    for table in TABLES:
        for path in run.files(table):
            found[path] = lambda table=table, path=path: run.part(table, path).to_pylist()
    for table in (CHES, ANSWER_LOGPS):
        found[folder / table.file] = lambda table=table: read_side_table(folder, table).to_dict("records")
    found[folder / "vocab.json"] = lambda: load_vocabulary(run)
    for name in ("findings.json", "data_report.json"):
        found[folder / name] = lambda name=name: read_json(folder / name)
    for name in ("config.yaml", "overrides.yaml"):
        found[folder / ".hydra" / name] = lambda name=name: read_yaml(folder / ".hydra" / name)
    found[folder / ".hydra" / "job.json"] = lambda: job_state(folder)
    found[folder / "review" / "ann.jsonl"] = lambda: judgements.read(folder)
    return found


def test_a_flipped_bit_is_found_or_changes_no_value(tmp_path: Path, fault: Callable[..., None]) -> None:
    """24 bits of each file, evenly over its bytes, and of Parquet 16 more in the footer, where no page's sum reaches. A
    flip in the name of the sum itself leaves a key that nobody reads."""
    write_run(tmp_path)
    rng = np.random.default_rng(1)
    tried, believed = 0, []
    for path, read in readers(tmp_path).items():
        whole, before = path.read_bytes(), read()
        places = list(np.linspace(0, len(whole) - 1, 24).astype(int))
        places += list(rng.integers(len(whole) - 700, len(whole), 16)) if path.suffix == ".parquet" else []
        for place in places:
            bit = int(rng.integers(8))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            tried += 1
            try:
                after = read()
            except DiagError:
                continue
            if isinstance(before, dict):
                after = {name: after.get(name) for name in before}
            if after != before and not getattr(after, "damaged", None):
                believed.append((path.name, place, bit))
        path.write_bytes(whole)
    assert believed == []
    assert tried > 500
    fault("a flipped bit in a run's file", tried=tried, lost=len(believed))


def test_one_bad_file_is_named_and_the_rest_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three of the four evaluations stay: explain goes on to step 20 instead of 30, says what is missing, and the gate
    does not pass."""
    writer = RunWriter(tmp_path)
    for step in (0, 10, 20, 30):
        rows = [{"step": step, "split": "eval", "role": "policy", "pair_id": p, "side": s, "sum_logp": -10.0 - step,
                 "n_tokens": 4, "n_bytes": 12} for p in IDS for s in SIDES]  # fmt: skip
        writer.write("pairs", rows, "eval")
    writer.finish()
    bad = tmp_path / "pairs" / "00000030-00000030.eval.r0.parquet"
    data = bytearray(bad.read_bytes())
    data[len(data) // 3] ^= 4
    bad.write_bytes(bytes(data))
    run = load_run(tmp_path)
    with pytest.warns(DamagedRecords, match=f"rows are left out: a record file cannot be read; in {bad}.*restore it"):
        document = explain(run)
    assert (document["from_step"], document["to_step"], document["damaged"]) == (0, 20, [str(bad)])
    assert any(str(bad) in note for note in document["notes"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert sorted(set(run.read("pairs")["step"])) == [0, 10, 20]
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- metric: ppl_token/chosen\n  split: eval\n  max: 1000000\n")
    with pytest.warns(DamagedRecords):
        assert gate(tmp_path, rules=rules, json=True) == 1
    told = json.loads(capsys.readouterr().out)["rules"]
    assert (told[-1]["name"], told[-1]["status"], str(bad) in told[-1]["reason"]) == ("records", "failed", True)


def test_the_doctor_verifies_every_file(tmp_path: Path) -> None:
    """A whole run: every file counted. One of each kind with a flipped bit: it is named."""
    write_run(tmp_path)
    files = readers(tmp_path)
    checksums = [f.found for f in check_run(tmp_path) if f.name == "checksums"]
    assert checksums == [f"{len(files) - 1} files as written"]  # the judgements' lines are summed one by one
    for path in {path.suffix + path.parent.name: path for path in files}.values():
        whole = path.read_bytes()
        path.write_bytes(whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
        failed = [f for f in check_run(tmp_path) if f.outcome == "fail" and path.name in f.name + f.found]
        assert failed, path
        path.write_bytes(whole)


def test_what_was_changed_by_hand_on_purpose_is_read_without_its_line(tmp_path: Path) -> None:
    RunWriter(tmp_path).finish()
    file = tmp_path / "run.json"
    text = file.read_text().replace('"trained"', '"scored"')
    file.write_text(text)
    with pytest.raises(
        DiagError, match=r"run.json cannot be read.*if it was changed on purpose, remove its line crc32"
    ):
        load_run(tmp_path)
    lines = [line for line in text.splitlines() if '"crc32"' not in line]
    file.write_text("\n".join([*lines[:-2], lines[-2].rstrip(","), lines[-1]]))
    assert load_run(tmp_path).kind == "scored"
    # Whoever removes the line and nothing else leaves the comma before it.
    file.write_text("\n".join(lines))
    assert lines[-2].endswith(",") and load_run(tmp_path).kind == "scored"
    # A file that is cut has no such line: it is not proposed.
    file.write_text(text[:100])
    with pytest.raises(DiagError, match=r"got no JSON: .*; hint: restore it$"):
        load_run(tmp_path)


def test_line_ends_of_windows_damage_nothing(tmp_path: Path) -> None:
    """git's autocrlf and many editors write them; a value that was changed beside them is found all the same."""
    writer = RunWriter(tmp_path)
    writer.finish("finished")
    file = tmp_path / "run.json"
    data = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(data)
    assert load_run(tmp_path).info.status == "finished"
    file.write_bytes(data.replace(b'"finished"', b'"failed"'))
    with pytest.raises(DiagError, match="checksum"):
        load_run(tmp_path)
