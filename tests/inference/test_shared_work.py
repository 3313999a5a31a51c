"""Several processes, some of them killed, and a Ray cluster write the run that one process writes; a second start does
only what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dpo_diag import load_run
from dpo_diag.commands.hydra_callback import HELD
from dpo_diag.commands.run_place import RunPlace
from dpo_diag.config_checkpoints import ScoreConfig
from dpo_diag.errors import DiagError
from dpo_diag.extras import is_installed
from dpo_diag.inference import by_rank, scoring
from dpo_diag.inference.by_ray import Cluster
from dpo_diag.inference.generate_run import generate_checkpoints
from dpo_diag.inference.launch import Launch, parts_wait, run_shared
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.inference.shared_work import GenerateJob, Job, ScoreJob
from dpo_diag.inference.work_list import Shelf
from dpo_diag.models import checkpoints
from dpo_diag.models.checkpoints import Loader
from dpo_diag.models.decoding import Decoding
from dpo_diag.records.remote import download, upload
from dpo_diag.records.schemas import CHES, TABLES
from dpo_diag.records.side_tables import read_side_table

from .conftest import make_model, make_tokenizer

PAIRS = [
    {"prompt": f"question {'very ' * (i % 4)}{i} ", "chosen": "a" * (i + 1) + " yes", "rejected": "no " * (1 + i % 3)}
    for i in range(8)
]
"""7 pairs that fit into 48 tokens and, as the only ones of their part, two whose prompt alone is longer."""
PAIRS += [{"prompt": f"{i} is long " * 9, "chosen": "x", "rejected": "y"} for i in (8, 9)]
SETTINGS: dict[str, Any] = {"max_length": 48, "tokens": True, "ches": True, "batch_size": 4}
FACTS = {"loss": {"types": ["sigmoid"], "beta": 0.1}}
PROMPTS = [{"id": f"p{i}", "prompt": f"say {i} "} for i in range(5)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ref/, checkpoint-10/ and checkpoint-20/."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("ref", "checkpoint-10", "checkpoint-20")):
        make_model(seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone") / "run"
    score_checkpoints(
        [str(models / "checkpoint-*")], PAIRS, out, reference=str(models / "ref"), loader=Loader("cpu"), facts=FACTS,
        progress=False, **SETTINGS,
    )  # fmt: skip
    return out


def score_job(models: Path) -> ScoreJob:
    return ScoreJob.of(
        [str(models / "checkpoint-*")], PAIRS, reference=str(models / "ref"), settings=SETTINGS, facts=FACTS
    )


def assert_same(one: Path, other: Path) -> None:
    """Every table to 1e-5 (perplexities in the thousands to 1e-6 of themselves), in whatever order; and what run.json
    says of models, splits and pairs left out."""
    for table in ("pairs", "tokens", "history", "texts", "outputs"):
        a, b = load_run(one).read(table), load_run(other).read(table)
        key = list(TABLES[table].key)
        for frame in (a, b):
            frame[key] = frame[key].astype(str)
        a, b = (frame.sort_values(key, ignore_index=True) for frame in (a, b))
        assert not a.duplicated(key).any()
        pd.testing.assert_frame_equal(a, b, atol=1e-5, rtol=1e-6)
    a, b = (read_side_table(run, CHES).sort_values("pair_id", ignore_index=True) for run in (one, other))
    pd.testing.assert_frame_equal(a, b, atol=1e-4, rtol=1e-5)
    metas = [load_run(run).meta for run in (one, other)]
    for meta in metas:
        for name in ("model", "reference"):
            meta.get(name, {}).pop("shared_prefix", None)  # how far the ways differed is measured in every part
    for name in ("status", "splits", "model", "reference", "tokenizer", "loss", "logps", "decoding", "prompts"):
        assert metas[0].get(name) == metas[1].get(name), name
    dropped = [{pair["pair_id"] for pair in meta.get("dropped_pairs", [])} for meta in metas]
    assert dropped[0] == dropped[1]


def run(job: Job, out: Path, size: int = 4) -> list[str]:
    """Does what is missing in this process; returns the parts that it did."""
    said: list[str] = []
    assert run_shared(job, str(out), out, Loader("cpu"), Launch(shard_size=size), say=said.append)
    return said


@pytest.mark.slow
def test_parts_make_the_run_of_one_process(models: Path, alone: Path, tmp_path: Path) -> None:
    """3 models x 3 parts of 4 pairs, the last part without a pair that fits; the second start has nothing to do, and
    no part is left beside the run."""
    said = run(score_job(models), tmp_path / "run")
    assert len(said) == 9 and said[0] == "ref, 1 to 4"
    assert_same(tmp_path / "run", alone)
    assert run(score_job(models), tmp_path / "run") == []
    left = [p.name for p in (tmp_path / "run" / ".work").rglob("*") if p.is_file()]
    assert left == ["assembled.json"]


class Killed(BaseException):
    """In place of a SIGKILL."""


@pytest.mark.parametrize("when", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_second_start_does_only_what_is_missing(
    models: Path, alone: Path, tmp_path: Path, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the n-th part is about to be put on the shelf: n - 1 are there, 10 - n are done by the next start."""
    job, calls, put = score_job(models), [0], Shelf.put

    def counted(self: Shelf, name: str, data: bytes) -> None:
        calls[0] += 1
        if calls[0] == when:
            raise Killed
        put(self, name, data)

    monkeypatch.setattr(Shelf, "put", counted)
    with pytest.raises(Killed):
        run(job, tmp_path / "run")
    monkeypatch.setattr(Shelf, "put", put)
    assert len(run(job, tmp_path / "run")) == 10 - when
    assert_same(tmp_path / "run", alone)


def test_killed_while_the_run_is_put_together(
    models: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference and step 10 stand in the run, step 20's parts on the shelf: nothing is measured again."""
    from dpo_diag.inference import shared_work

    written, write = [0], shared_work.write_scores

    def third(*args: Any) -> None:
        written[0] += 1
        if written[0] == 3:
            raise Killed
        write(*args)

    monkeypatch.setattr(shared_work, "write_scores", third)
    with pytest.raises(Killed):
        run(score_job(models), tmp_path / "run")
    monkeypatch.setattr(shared_work, "write_scores", write)
    assert run(score_job(models), tmp_path / "run") == []
    assert_same(tmp_path / "run", alone)


def test_killed_before_the_parts_are_cleared(
    models: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run holds everything, and its parts still lie beside it: the next start has nothing to measure, marks the run
    finished and clears them, so that no later one takes them for unfinished work."""

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Shelf, "clear", killed)
        run(score_job(models), tmp_path / "run")
    assert parts_wait(str(tmp_path / "run"))
    assert run(score_job(models), tmp_path / "run") == []
    assert not parts_wait(str(tmp_path / "run")) and load_run(tmp_path / "run").info.status == "finished"
    assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("option", "is_shared"), [({}, True), ({"kl": True}, False), ({"reference_store": "store"}, False)]
)
def test_one_process_goes_on_with_parts_that_several_left_where_it_can(
    tmp_path: Path, option: dict[str, Any], is_shared: bool
) -> None:
    """What only one process can do is done by it alone, and not refused as if there were several."""
    Shelf(tmp_path / "run" / ".work" / "score-eval").put("part.zip", b"")
    try:
        place = RunPlace.of(ScoreConfig(out=str(tmp_path / "run"), **option), tmp_path / "own")
    finally:
        HELD.pop()()
    assert (place.launch is not None) == is_shared


def test_other_settings_and_other_pairs_take_no_part_for_theirs(models: Path, tmp_path: Path) -> None:
    """The names of the parts differ where what is measured differs."""
    job = score_job(models)
    names = {item.name for item in job.items(tmp_path, 2)}
    other = ScoreJob.of(
        [str(models / "checkpoint-*")], PAIRS, reference=str(models / "ref"), settings={"tokens": False}
    )
    assert len(names) == 15 and not names & {item.name for item in other.items(tmp_path, 2)}
    fewer = ScoreJob.of([str(models / "checkpoint-*")], PAIRS[1:], reference=str(models / "ref"), settings=SETTINGS)
    assert not names & {item.name for item in fewer.items(tmp_path, 2)}
    half = ScoreJob.of(
        [str(models / "checkpoint-*")], PAIRS, reference=str(models / "ref"), settings=SETTINGS,
        loading={"dtype": "bfloat16"},
    )  # fmt: skip
    assert not names & {item.name for item in half.items(tmp_path, 2)}
    named = [{**pair, "pair_id": f"mine-{i}"} for i, pair in enumerate(PAIRS)]
    changed = [{**pair, "chosen": f"{pair['chosen']}!"} for pair in named]
    before, after = (
        {i.name for i in ScoreJob.of([str(models / "checkpoint-10")], rows, settings=SETTINGS).items(tmp_path, 2)}
        for rows in (named, changed)
    )
    assert len(before) == len(after) == 5 and not before & after
    smaller = ScoreJob.of(
        [str(models / "checkpoint-*")], PAIRS, reference=str(models / "ref"), settings=SETTINGS | {"batch_size": 1}
    )  # which moves a sum by rounding alone
    assert names == {item.name for item in smaller.items(tmp_path, 2)}


def test_one_base_and_one_proof_for_all_parts_of_a_process(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two adapters and the model under them, 8 pairs in parts of 4, the longest of 35 and of 39 tokens: six parts.
    The base is loaded once. Its way and that of both adapters is proved on the first part, and once more for the
    longer one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for step in (10, 20):
        torch.manual_seed(step)
        base = AutoModelForCausalLM.from_pretrained(models / "ref")
        adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(base, adapter).save_pretrained(tmp_path / f"checkpoint-{step}")
    loaded: list[str] = []
    proved: list[int] = []
    load, prove = checkpoints.load_model, scoring.proved_way

    def loading(name: str, **options: Any) -> Any:
        loaded.append(name)
        return load(name, **options)

    def proving(model: Any, spans: Any, *args: Any) -> Any:
        proved.append(max(map(len, spans)))
        return prove(model, spans, *args)

    monkeypatch.setattr(checkpoints, "load_model", loading)
    monkeypatch.setattr(scoring, "proved_way", proving)
    job = ScoreJob.of([str(tmp_path / "checkpoint-*")], PAIRS[:8], settings=SETTINGS)
    assert len(run(job, tmp_path / "run")) == 6
    assert loaded == [str(models / "ref")]
    assert proved == [35, 39] * 2


def test_no_pair_that_fits(models: Path, tmp_path: Path) -> None:
    job = ScoreJob.of([str(models / "checkpoint-10")], PAIRS[8:], settings=SETTINGS)
    with pytest.raises(DiagError, match=r"no pair to score.*checkpoint-10"):
        run(job, tmp_path / "run")


@pytest.mark.slow
def test_answers(models: Path, tmp_path: Path) -> None:
    """5 prompts in parts of 4: 2 parts a checkpoint; a run that holds the answers to 4 of them gets the last."""
    names, decoding = [str(models / "checkpoint-*")], Decoding(6, n_samples=1)
    generate_checkpoints(names, PROMPTS, tmp_path / "one", decoding=decoding, loader=Loader("cpu"), progress=False)
    job = GenerateJob.of(names, PROMPTS, decoding)
    assert len(run(job, tmp_path / "run")) == 4
    assert_same(tmp_path / "run", tmp_path / "one")
    generate_checkpoints(names, PROMPTS[:4], tmp_path / "more", decoding=decoding, loader=Loader("cpu"), progress=False)
    assert len(run(job, tmp_path / "more")) == 2
    assert_same(tmp_path / "more", tmp_path / "one")


WORKER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from inference.test_shared_work import score_job, Launch, Loader, Shelf, run_shared
out, killed_at = Path(sys.argv[1]), int(sys.argv[2])
put, calls = Shelf.put, 0

def counted(self, name, data):
    global calls
    calls += 1
    if calls == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, name, data)
    print(name, flush=True)

Shelf.put = counted
run_shared(score_job(Path({models!r})), str(out), out, Loader("cpu"), Launch(shard_size=2))
"""


def start(models: Path, out: Path, rank: int, killed_at: int) -> subprocess.Popen[str]:
    """One of two processes, as a launcher starts them; it kills itself before its n-th part is put."""
    script = WORKER.format(tests=str(Path(__file__).parents[1]), models=str(models))
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", script, str(out), str(killed_at)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed(models: Path, alone: Path, tmp_path: Path) -> None:
    """The second dies over its second part, which was claimed: the first does that one too, and none twice."""
    workers = [start(models, tmp_path / "run", rank, killed_at) for rank, killed_at in ((0, 0), (1, 2))]
    try:
        (done, said), (theirs, _) = (worker.communicate(timeout=200) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
    assert workers[0].returncode == 0, said
    assert workers[1].returncode == -signal.SIGKILL
    first, second = done.split(), theirs.split()
    assert len(second) <= 1 and len(first) + len(second) == 15 and not set(first) & set(second)
    assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize("when", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_a_run_behind_a_url(
    models: Path, alone: Path, tmp_path: Path, when: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """memory:// in place of s3://: parts are put there, one killed start's parts are not done again, the run is put
    where the URL says and read from there."""
    url, job = f"memory://{tmp_path.name}/run", score_job(models)
    said: list[str] = []

    def work(folder: Path) -> None:
        assert run_shared(job, url, folder, Loader("cpu"), Launch(shard_size=5), say=said.append)

    if when:
        put = Shelf.put

        def killed(self: Shelf, name: str, data: bytes) -> None:
            if len(said) == when:
                raise Killed
            put(self, name, data)

        monkeypatch.setattr(Shelf, "put", killed)
        with pytest.raises(Killed):
            work(tmp_path / "first")
        monkeypatch.setattr(Shelf, "put", put)
    work(tmp_path / "second")
    assert len(said) == (7 if when else 6)
    upload(tmp_path / "second", url)
    assert_same(download(url, tmp_path / "here"), alone)
    assert len(load_run(url).pairs) == len(load_run(alone).pairs)
    # Another start, on another machine: what the URL holds is brought there first.
    assert job.items(download(url, tmp_path / "third"), 5) == []


@pytest.mark.slow
def test_processes_that_share_no_folder_do_their_share(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 of 2 does every second part of 6 and leaves; rank 0 does the others and puts the run together."""
    url = f"memory://{tmp_path.name}/run"
    said: list[str] = []
    for rank, expected in ((1, False), (0, True)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        folder = tmp_path / str(rank)
        assert (
            run_shared(score_job(models), url, folder, Loader("cpu"), Launch(shard_size=5), say=said.append) is expected
        )
        assert len(said) == 3 * (2 - rank)
    assert len(load_run(tmp_path / "0").history)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("ray"), reason="ray is not installed: pip install 'dpo-diag[ray]'")
def test_a_ray_cluster_one_of_whose_actors_is_killed(models: Path, alone: Path, tmp_path: Path) -> None:
    """A local cluster of two actors; one is killed over its first part, which another one does."""
    import ray

    class KilledOnce(ScoreJob):
        def measure(self, item: Any, folder: Path, loader: Any) -> None:
            try:
                (tmp_path / "killed").touch(exist_ok=False)
            except FileExistsError:
                super().measure(item, folder, loader)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    job, said = score_job(models), []
    job = KilledOnce(**vars(job))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        launch = Launch("ray", 2, Cluster(workers=2, cpus=1))
        assert run_shared(job, str(tmp_path / "run"), tmp_path / "run", Loader("cpu"), launch, say=said.append)
        assert len(said) == 17 and sum("died" in line for line in said) == 1
        assert_same(tmp_path / "run", alone)
        said.clear()
        assert run_shared(job, str(tmp_path / "run"), tmp_path / "run", Loader("cpu"), launch, say=said.append)
        assert said == []
    finally:
        ray.shutdown()


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpo_diag import extras
    from dpo_diag.config_checkpoints import ScoreConfig, check_score

    known: Callable[[str], bool] = extras.is_installed
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "ray" and known(name))
    with pytest.raises(DiagError, match=r"launcher=ray needs ray.*\[ray\]"):
        check_score(ScoreConfig(checkpoints="x", launcher="ray"))
    with pytest.raises(DiagError, match=r"unknown launcher.*auto, none, rank, ray"):
        check_score(ScoreConfig(checkpoints="x", launcher="slurm"))


def test_the_place_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert by_rank.place() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert by_rank.place() == (3, 8)


def test_commands_write_to_a_url_and_fetch_from_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """dpo-generate to file://, in this process: the last line is the URL; fetched, it reads; fetched onto it, it does
    not; a URL without a run is said; several processes without `out` are refused."""
    from dpo_diag.commands import diag, generate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "say 1 "}\n')
    url = f"file://{tmp_path}/remote/run"
    arguments = [f"checkpoints={models / 'checkpoint-10'}", "prompts.path=prompts.jsonl", "prompts.max_new_tokens=4"]
    monkeypatch.setattr(sys, "argv", ["dpo-generate", *arguments, f"out={url}"])
    assert generate.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == url
    assert diag.main(["fetch", url, "--out", "here"]) == 0
    assert capsys.readouterr().out == "here\n"
    assert load_run("here").outputs["prompt_id"].tolist() == ["a"]
    assert diag.main(["fetch", url, "--out", "here"]) == 2
    assert diag.main(["fetch", f"file://{tmp_path}/nothing"]) == 1
    assert "no run folder; in file://" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["dpo-generate", *arguments])
    assert generate.main() == 2
    assert "several processes need one place to meet" in capsys.readouterr().err
