"""Inputs that somebody broke, through every reader: a value or one line of ours, in bounded time and memory."""

from __future__ import annotations

import json
import secrets
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import pytest

from dpo_diag import load_run
from dpo_diag.data.pairs import read_pairs
from dpo_diag.errors import DamagedRecords, DiagError
from dpo_diag.gate.judge import Gate
from dpo_diag.gate.rules import load_rules
from dpo_diag.importers import import_path
from dpo_diag.importers.scores import read_scores
from dpo_diag.inference.prompts import load_prompts
from dpo_diag.records.text_files import Skipped
from dpo_diag.review import judgements
from dpo_diag.review.results import results
from tests.faults.inputs import mutated, trouble
from tests.faults.patterns import attacks, patterns, seconds

SAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = Path(__file__).parents[2] / "runs" / "example"
MANY, PORTIONS = 10_000, 5


class Door(NamedTuple):
    """A reader: what it is given is written to `name` in a folder of its own."""

    fault: str
    name: str
    whole: bytes
    read: Callable[[Path], object]
    share: int = 1


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


LOG = [
    {"step": s, "loss": 0.7 - s / 90, "rewards/chosen": 0.1 * s, "eval_loss": 0.5, "epoch": s / 9} for s in range(1, 7)
]
CONSOLE = b"Train: 10%|#  | 1/10 [00:01<00:09]\n{'loss': 0.69, 'rewards/chosen': tensor(0.1)}\nstep=2 loss=0.6\n"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
PAIRS = [
    {"prompt": "Say hi.", "chosen": "Hello.", "rejected": "No.", "tools": "[]", "score_chosen": 2},
    {"messages": TURNS, "chosen": TURNS, "rejected": [*TURNS[:1], {"role": "assistant", "content": "No."}]},
]
SUMS = [
    {"step": s, "pair_id": p, "chosen_sum_logp": -s, "rejected_sum_logp": -2.5, "chosen_n_tokens": 3, "score/x": 1}
    for s in (0, 1) for p in "ab"
]  # fmt: skip
PROMPTS = [
    {"id": "a", "prompt": "Hi", "tags": ["format=json"], "reference": "x", "checker": "regex", "pattern": "x"},
    {"id": 2, "messages": TURNS[:1], "tags": [], "probe": "p", "claim": 1},
]
RULES = {
    "decide": "point",
    "rules": [
        {"metric": "loss", "max_rise": 0.1, "split": "eval", "missing": "skip"}, {"finding": "DVG001"},
        {"gaming": "length"}, {"behaviour": "refusal"}, {"tag": "x", "of": "gap", "min": 0}, {"phrases": 3},
        {"phrase": "as an AI", "max": 1}, {"review": "win_rate", "min": 0.5, "name": "n"},
    ],
}  # fmt: skip
VERDICT = {
    "v": 1, "reviewer": "ann", "kind": "person", "item": "i", "prompt_id": "p", "sample": 0, "left": "a",
    "a": {"model": "policy", "step": 0}, "b": {"model": "policy", "step": 2}, "outcome": "b", "time": "2026-01-01",
    "behaviours": {"refusal": ["a"]}, "asked": ["refusal"], "note": "", "seconds": 2.5, "detail": {},
}  # fmt: skip


def _import(file: Path) -> object:
    return import_path(file, file.parent / "run")


def _review(file: Path) -> object:
    run = file.parents[1]
    (run / "run.json").write_text('{"schema_version": "1.1", "kind": "trained"}')
    judgements.read(run).effective()
    return results(load_run(run))


def _run_json(file: Path) -> object:
    run = load_run(file.parent)
    return run.info, run.kind, run.role("eval"), run.history


def _records(file: Path) -> object:
    run = file.parents[1]
    shutil.copy(EXAMPLE / "run.json", run / "run.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedRecords)  # said, and the rows left out
        return load_run(run).history


def _judging() -> Callable[[Path], object]:
    """Rules held against the example run, of which everything that rules ask for is known beforehand."""
    gate = Gate(load_run(EXAMPLE))
    gate.judge_all(RULES["rules"])  # type: ignore[arg-type]
    return lambda file: gate.judge_all(load_rules(file))


def _overrides(file: Path) -> object:
    from dpo_diag.commands.overrides import explain_override, plain_value, quoted_paths

    lines = file.read_bytes().decode("utf-8", "replace").split("\n")
    return [(explain_override([line]), plain_value(line), quoted_paths([line])) for line in lines[:2]]


def doors(folder: Path, judge: bool) -> list[Door]:
    parquet = folder / "pairs.parquet"
    pd.DataFrame(PAIRS[:1] * 3).to_parquet(parquet)
    # Without their checksums, which would refuse every change: a run of an older version has none.
    records = folder / "history.parquet"
    pq.write_table(load_run(EXAMPLE).arrow("history").replace_schema_metadata(None), records)
    about = json.dumps(load_run(EXAMPLE).meta).encode()
    history = next((EXAMPLE / "history").glob("*.parquet"))
    log = "a trainer's log"
    return [
        Door(log, "log.jsonl", _lines(*LOG), _import, 4),
        Door(log, "trainer_state.json", json.dumps({"log_history": LOG, "max_steps": 6}).encode(), _import, 4),
        Door(log, "train.log", CONSOLE * 3, _import, 4),
        Door(log, "log.csv", pd.DataFrame(LOG).to_csv(index=False).encode(), _import, 2),
        Door(log, "frame.txt", pd.DataFrame(LOG).to_string().encode(), _import),
        Door(log, "page.html", pd.DataFrame(LOG).to_html().encode(), _import),
        Door(log, "pairs.jsonl", _lines(*SUMS), _import, 3),
        Door(log, "results.json", json.dumps(
            {"results": {"t": {"alias": "t", "acc,none": 0.5}}, "versions": {}, "n-samples": {"t": {"effective": 5}}}
        ).encode(), _import),
        Door(log, "charts.json", b'{"train": {"loss": {"steps": [1, 2], "values": [0.7, null]}}}', _import),
        Door("preference rows", "pairs.jsonl", _lines(*PAIRS), read_pairs, 5),
        Door("preference rows", "pairs.csv", pd.DataFrame(PAIRS).to_csv(index=False).encode(), read_pairs, 2),
        Door("preference rows", "pairs.json", json.dumps(PAIRS, indent=1).encode(), read_pairs, 2),
        Door("preference rows", "pairs.parquet", parquet.read_bytes(), read_pairs, 2),
        Door("a prompt set", "prompts.jsonl", _lines(*PROMPTS), load_prompts, 4),
        Door("gate rules", "rules.yaml", json.dumps(RULES, indent=1).encode(), _judging() if judge else load_rules, 2),
        Door("scores", "scores.jsonl", _lines({"step": 1, "name": "x", "value": 0.5, "n": 10}),
             lambda file: read_scores(file, Skipped()), 3),
        Door("a review's lines", "review/ann.jsonl", _lines(VERDICT, VERDICT), _review, 4),
        Door("a run's records", f"history/{history.name}", records.read_bytes(), _records, 3),
        Door("run.json", "run.json", about, _run_json, 4),
        Door("overrides", "overrides", b"trainer.learning_rate=1e-4\ndata.path=[a,b]\n", _overrides, 3),
    ]  # fmt: skip


def broken_inputs(folder: Path, seeds: Iterator[int], many: int) -> tuple[Counter[str], list[tuple[str, str]]]:
    """(inputs tried by fault, (fault, what was wrong) of those that did wrong)."""
    tried: Counter[str] = Counter()
    wrong: list[tuple[str, str]] = []
    shares = [door for door in doors(folder, judge=many >= MANY // PORTIONS) for _ in range(door.share)]
    for n, seed in zip(range(many), seeds, strict=False):
        door = shares[n % len(shares)]
        text = mutated(door.whole, Random(seed))
        file = folder / "in" / door.name
        shutil.rmtree(folder / "in", ignore_errors=True)
        file.parent.mkdir(parents=True)
        file.write_bytes(text)
        tried[door.fault] += 1
        if (what := trouble(lambda _, door=door, file=file: door.read(file), text)) is not None:
            wrong.append((door.fault, f"{door.name}, seed {seed}: {what}"))
    return tried, wrong


def test_a_line_does_not_quote_a_whole_broken_file(tmp_path):
    """A column's name of 30,000 characters in a table of sums that lacks another column."""
    row = {"step": 1, "pair_id": "a", "chosen_sum_logp": -1, "rejected_sum" + "{" * 30_000: -2}
    (tmp_path / "pairs.jsonl").write_bytes(_lines(row))
    with pytest.raises(DiagError, match=r"rejected_sum_logp.*are missing") as error:
        _import(tmp_path / "pairs.jsonl")
    assert 2000 < len(str(error.value)) < 3000
    (tmp_path / "rules.yaml").write_text("rules: [{metric: loss, max" + "9" * 30_000 + "}]")
    with pytest.raises(DiagError, match=r"unknown key 'max999.*\.\.\.; in .*expected some of \[") as error:
        load_rules(tmp_path / "rules.yaml")
    assert 2000 < len(str(error.value)) < 3000


def test_an_override_may_be_longer_than_a_file_name():
    from dpo_diag.commands.overrides import explain_override

    assert "unknown key" in explain_override(["trainer" + "9" * 5000 + "=1"])


def _hold(folder: Path, seeds: Iterator[int], many: int, fault: Callable[..., None]) -> None:
    tried, wrong = broken_inputs(folder, seeds, many)
    print("\n".join(what for _, what in wrong))
    for name, n in tried.items():
        fault(f"fuzzed: {name}", tried=n, lost=sum(fault == name for fault, _ in wrong))


def test_no_broken_input_gives_a_traceback_or_takes_long(tmp_path, monkeypatch, fault):
    """Each input: a value or a DiagError of one line, within 2 s of the processor and 500 MiB. One round of the doors,
    each by its share."""
    monkeypatch.chdir(tmp_path)
    _hold(tmp_path, count(), 55, fault)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("portion", range(PORTIONS))
def test_no_broken_input_of_many(tmp_path, monkeypatch, fault, portion):
    """Others at each run: what fails names its seed, from which it is made again."""
    monkeypatch.chdir(tmp_path)
    _hold(tmp_path, count(secrets.randbelow(1 << 48)), MANY // PORTIONS, fault)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_regular_expression_backtracks(fault):
    """Texts of 20,000 characters that repeat what a repeat of the pattern takes: 0.1 s is 5 µs a character."""
    tried, slow = 0, []
    for pattern in patterns():
        for text in attacks(pattern.compiled, 20_000):
            tried += 1
            if seconds(pattern, text, 1) > 0.1 and min(seconds(pattern, text, 1) for _ in range(3)) > 0.1:
                slow.append((pattern.where, text[:30]))
                break
    print(*slow, sep="\n")
    fault("text that makes a regular expression backtrack", tried=tried, lost=len(slow))
