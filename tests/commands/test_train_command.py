"""dpo-train from the command line to finished, explained run folders."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.train import job
from dpo_diag.config import conf_dir
from dpo_diag.records import load_run
from dpo_diag.records.checksums import read_json

SMALL = [
    "trainer.max_steps=4", "trainer.eval_steps=2", "trainer.batch_size=4", "trainer.max_length=64",
    "trainer.learning_rate=1e-3", "data.eval_share=0.3", "data.max_bad_share=0.1", "prompts=file",
    "prompts.max_new_tokens=4", "model.device=cpu",
]  # fmt: skip


@pytest.fixture
def own(tiny_folder: Path, pair_file: Path, tmp_path: Path) -> list[str]:
    """Overrides that name one's own model, pairs and prompts."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": f"q{i}", "prompt": f"{i} cat:", "tags": ["like_training" if i % 2 else "other"]} for i in range(4)]
    prompts.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [
        "model=hub", f"model.name={tiny_folder}", "data=jsonl", f"data.path={pair_file}", f"prompts.path={prompts}",
        f"output_root={tmp_path / 'runs'}", *SMALL,
    ]  # fmt: skip


def test_a_run_is_whole(own: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """One training: records at steps 0, 2, 4, an exact loss, a report, and the folder alone on the last line."""
    assert run_app("dpo-train", "config", job, own) == 0
    printed = capfd.readouterr()
    folder = Path(printed.out.splitlines()[-1])
    run = load_run(folder)
    assert run.meta["status"] == "finished"
    assert run.meta["loss"]["types"] == ["sigmoid"]
    assert run.meta["training"]["shared_prefix"]["way"] == "packed"
    assert run.meta["data"]["n_dropped"] == 1
    report = json.loads((folder / "data_report.json").read_text())
    assert report["dropped"] == {"chosen equals rejected": 1} or report["n_dropped"] == 1
    # One sample stands in the report and, before the first step, on the console, its trained tokens marked.
    trained = ["".join(p["text"] for p in report["sample"][side] if p["trained"]) for side in ("chosen", "rejected")]
    assert all(f"⟦{text}⟧" in printed.err for text in trained) and trained[0] != trained[1]

    eval_pairs = run.pairs[run.pairs["split"] == "eval"]
    assert sorted(set(eval_pairs["step"])) == [0, 2, 4]
    assert len(eval_pairs) == 3 * 2 * run.meta["data"]["n_held_out"]
    losses = run.history.query("split == 'eval' and name == 'loss'").set_index("step")["value"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    # The mean over pairs of -log sigmoid(beta (a - b)) from the records is the loss that was logged.
    exact = run.history.query("split == 'eval' and name == 'loss_exact'").set_index("step")["value"]
    for step, pairs in eval_pairs.groupby("step"):
        ratio = (pairs["sum_logp"] - pairs["ref_sum_logp"]).groupby([pairs["pair_id"], pairs["side"]]).first().unstack()
        own_loss = np.log1p(np.exp(-0.1 * (ratio["chosen"] - ratio["rejected"]))).mean()
        assert own_loss == pytest.approx(exact[step], abs=1e-6)
    assert run.history.query("name == 'loss_residual'")["value"].max() < 1e-4
    assert sorted(set(run.outputs["step"])) == [0, 2, 4]
    assert set(run.outputs["model"]) == {"policy", "ref"}
    assert set(run.texts["pair_id"]) >= set(eval_pairs["pair_id"])
    findings = json.loads((folder / "findings.json").read_text())
    assert findings["n_pairs"] == run.meta["data"]["n_held_out"]
    assert (folder / "report.html").stat().st_size > 10_000
    vocabulary = read_json(folder / "vocab.json")
    assert {str(i) for i in run.tokens["token_id"]} == set(vocabulary)
    assert (folder / ".hydra" / "overrides.yaml").is_file()
    # A model is kept without being asked for, and said to be; there is nothing to go on with.
    assert [p.name for p in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    said = "saves every 30 minutes and at the end: 2 stay, the last and the best measured one among them, up to "
    assert said in printed.err
    assert run_app("dpo-train", "config", job, [f"resume={folder}"]) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dpo-train: ")]
    assert len(said) == 1
    assert said[0].startswith(f"dpo-train: the run is finished; in {folder}; got step 4, its last; hint: ")
    assert load_run(folder).meta["status"] == "finished"


@pytest.mark.slow
def test_a_finished_run_goes_on_where_more_is_asked_and_back_where_a_step_is_named(
    own: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Four steps; then six; then from step 4 again, once: the next resume knows nothing of that step. Without its
    report a finished run gets it, and trains nothing."""
    assert run_app("dpo-train", "config", job, own) == 0
    folder = Path(capfd.readouterr().out.splitlines()[-1])

    def losses() -> dict[int, float]:
        rows = load_run(folder).history.query("split == 'train' and name == 'loss'")
        return dict(zip(rows["step"], rows["value"], strict=True))

    first = losses()
    assert run_app("dpo-train", "config", job, [f"resume={folder}", "trainer.max_steps=6"]) == 0
    second = losses()
    assert [*second] == [1, 2, 3, 4, 5, 6] and {k: second[k] for k in first} == first
    capfd.readouterr()
    assert run_app("dpo-train", "config", job, [f"resume={folder}", "checkpoint=4"]) == 0
    said = capfd.readouterr().err
    assert f"goes on from step 4, {folder}/checkpoints/checkpoint-4" in said
    assert f"note: checkpoint-6: beyond step 4, moved to {folder}/checkpoints/passed-over" in said
    assert losses() == second
    assert run_app("dpo-train", "config", job, [f"resume={folder}"]) == 2
    (folder / "report.html").unlink()
    assert run_app("dpo-train", "config", job, [f"resume={folder}"]) == 0
    assert (folder / "report.html").is_file() and losses() == second
    assert load_run(folder).meta["status"] == "finished"


def test_what_of_checkpoints_does_not_fit_is_told(own: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Before the model is loaded: a checkpoint without resume= is an error, a clock of 0 minutes too."""
    for override, said in (
        ("checkpoint=3", "configuration does not fit; in checkpoint; got 3; expected resume=RUN beside it"),
        ("fresh_optimizer=true", "in fresh_optimizer; got True; expected resume=RUN beside it"),
        ("trainer.save_minutes=0", "in trainer.save_minutes; got 0.0; expected more than 0, or null"),
        ("trainer.save_steps=0", "in trainer.save_steps; got 0; expected at least 1, or null"),
    ):
        assert run_app("dpo-train", "config", job, [*own, override]) == 2
        assert said in capfd.readouterr().err


def test_sft_logs_prompt_and_response_apart(own: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app("dpo-train", "config", job, [*own, "trainer=sft", "trainer.learning_rate=1e-3", "name=sft"]) == 0
    run = load_run(capfd.readouterr().out.splitlines()[-1])
    assert run.meta["training"]["shared_prefix"]["way"] == "head"
    names = set(run.history.query("split == 'eval'")["name"])
    assert {"loss", "ppl_token/response", "ppl_token/prompt"} <= names


def test_a_failure_before_training_is_one_line(
    own: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A GPU asked for and absent, a model that is no folder, too many bad rows: told before anything is trained."""
    for override, said in (
        ("model.name=/nowhere/model", "/nowhere/model"),
        ("data.max_bad_share=0.001", "too many bad rows"),
        ("+trainer.args.neftune=1", "trainer.args.neftune"),
    ):
        assert run_app("dpo-train", "config", job, [*own, override]) != 0
        err = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dpo-train:")]
        assert len(err) == 1
        assert said in err[0]
        if "max_bad_share" in override:
            newest = max((p for p in (tmp_path / "runs" / "run").iterdir()), key=lambda p: p.stat().st_mtime)
            listed = (newest / "data_issues.csv").read_text().splitlines()
            assert len(listed) == 2
            assert listed[1] == "train,read,41,chosen equals rejected,same,True"


@pytest.mark.slow
def test_ctrl_c_ends_with_the_command_that_goes_on(own: list[str], tmp_path: Path) -> None:
    """SIGINT to a training behind its first checkpoint: 130, `resume=` last; that command, as printed, ends the run."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    train = [sys.executable, "-m", "dpo_diag.commands.train"]
    more = ["trainer.max_steps=100", "trainer.eval_steps=50", "trainer.save_steps=10"]
    started = subprocess.Popen(
        [*train, *own, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    runs, end = tmp_path / "runs" / "run", time.monotonic() + 240
    while not list(runs.glob("*/checkpoints/checkpoint-10/trainer_state.json")) and time.monotonic() < end:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=120)
    (folder,) = runs.iterdir()
    assert started.returncode == 130, err[-3000:]
    assert load_run(folder).meta["status"] == "interrupted"
    assert err.splitlines()[-2:] == ["dpo-train: interrupted", f"next: dpo-train resume={folder}"]
    program, *arguments = shlex.split(err.splitlines()[-1].removeprefix("next: "))
    assert program == "dpo-train"
    resumed = subprocess.run([*train, *arguments], capture_output=True, text=True, env=environment, timeout=280)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    run = load_run(folder)
    assert run.meta["status"] == "finished" and Path(resumed.stdout.splitlines()[-1]) == folder.resolve()
    rows = run.history.query("split == 'train' and name == 'loss_exact'")
    assert rows["step"].tolist() == list(range(1, 101))


@pytest.mark.slow
def test_a_multirun_gives_two_whole_runs_and_the_last_line_is_a_folder(own: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dpo_diag.commands.train", "-m", *own, "loss.beta=0.1,2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = sorted((tmp_path / "runs" / "run").glob("*/*/run.json"))
    assert [json.loads(r.read_text())["loss"]["beta"] for r in runs] == [0.1, 2.0]
    assert Path(done.stdout.splitlines()[-1]) == runs[-1].parent
    assert done.stderr.splitlines()[-1] == f"next: dpo-diag sweep {runs[-1].parent.parent}"
    assert "loss.beta" in done.stderr and done.stderr.count("next: dpo-diag outputs") == 2
    assert all((r.parent / "findings.json").is_file() for r in runs)


@pytest.mark.slow
def test_two_processes_give_the_records_of_one(own: list[str], tmp_path: Path) -> None:
    """Same global batch, 1 x 8 against 2 x 4, over three whole batches: the same pairs, sums and metrics to 1e-5.

    (A last batch that does not divide is another training: accelerate fills it with pairs from the start.)
    """
    folders = []
    for processes, batch in ((1, 8), (2, 4)):
        # Not `accelerate launch --cpu --num_processes 2`: without MPI that starts one process (accelerate 1.15).
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, "-m", *launch, "-m", "dpo_diag.commands.train", *own,
                   f"trainer.batch_size={batch}", f"trainer.eval_batch_size={batch}", f"name=p{processes}",
                   "trainer.max_steps=3", "trainer.eval_steps=3"]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-3000:]
        folders.append(Path(done.stdout.splitlines()[-1]))
    one, two = (load_run(folder) for folder in folders)
    assert [run.meta["training"]["world_size"] for run in (one, two)] == [1, 2]
    key = ["step", "split", "pair_id", "side"]
    joined = one.pairs.merge(two.pairs, on=key, suffixes=("_1", "_2"), validate="one_to_one")
    assert len(joined) == len(one.pairs) == len(two.pairs)
    for column in ("sum_logp", "ref_sum_logp", "entropy_sum", "n_tokens", "n_bytes"):
        assert np.allclose(joined[f"{column}_1"], joined[f"{column}_2"], rtol=1e-5, atol=1e-4), column
    names = [
        "loss_exact",
        "ce/chosen",
        "ppl_token/chosen",
        "ppl_seq_mean/rejected",
        "bits_per_byte/chosen",
        "top1/chosen",
    ]
    first, second = (
        run.history[run.history["name"].isin(names)].set_index(["step", "split", "name"])["value"] for run in (one, two)
    )
    assert len(first) == len(second) == 5 * len(names)  # eval at 0 and 3, train at 1, 2, 3
    assert np.allclose(first, second.reindex(first.index), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some 30 trainings, one behind the other
def test_every_loss_trains_without_a_change_of_code(tmp_path: Path) -> None:
    """`loss=glob(*)`: a run of each option, its loss recomputed to rounding where it has a value per pair."""
    small = ["task.sft_steps=60", "task.n_pairs=40", "task.n_train_pairs=32", "task.n_questions=100",
             "task.n_held_out=4", "task.n_paraphrased=0", "trainer.max_steps=2", "trainer.eval_steps=2",
             "trainer.save_steps=null", "explain=false", "report=false"]  # fmt: skip
    command = [sys.executable, "-m", "dpo_diag.commands.train", "-m", "experiment=sql_dpo", "loss=glob(*)", *small]
    done = subprocess.run(
        [*command, f"output_root={tmp_path}"], capture_output=True, text=True, timeout=1500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    options = {path.stem for path in (conf_dir() / "loss").glob("*.yaml")}
    runs = {}
    for folder in (tmp_path / "sql_dpo").glob("*/*/run.json"):
        (chosen,) = re.findall(
            r"^- loss=(\w+)$", (folder.parent / ".hydra" / "overrides.yaml").read_text(), re.MULTILINE
        )
        runs[chosen] = load_run(folder.parent)
    assert set(runs) == options
    for name, run in runs.items():
        rows = run.history.query("split == 'eval' and name == 'loss'")
        assert rows["step"].tolist() == [0, 2] and np.isfinite(rows["value"]).all(), name
        residual = run.history.query("name == 'loss_residual'")["value"]
        assert (residual <= 1e-4 * rows["value"].abs().clip(lower=1).max()).all(), name
        assert run.info.reference_free == (not run.info.loss.needs_reference), name
        assert set(run.read("pairs", ["role"])["role"]) == (
            {"policy"} if run.info.reference_free else {"policy", "ref"}
        )
