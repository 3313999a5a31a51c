"""LLaMA-Factory, ms-swift, H2O, torchtune, CSV exports, JSON lines: each in its documented shape, each trap."""

from __future__ import annotations

import gzip
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_llamafactory_v0(tmp_path: Path, imported: Importing) -> None:
    """loss, accuracy, lr only; evaluations are rows of their own with the same current_steps."""
    rows = [
        {"current_steps": 10, "total_steps": 50, "loss": 0.69, "accuracy": 0.5, "lr": 1e-6, "epoch": 0.2,
         "percentage": 20.0, "elapsed_time": "0:01:03", "remaining_time": "3 days, 17:51:32"},
        {"current_steps": 10, "total_steps": 50, "eval_loss": 0.7, "epoch": 0.2, "percentage": 20.0},
    ]  # fmt: skip
    result, run = imported(jsonl(tmp_path / "trainer_log.jsonl", rows))
    assert (result["format"], result["trainer"], result["trainer_version"]) == ("llamafactory", "llama-factory", "v0")
    assert value(run, "rewards/accuracies", 10) == 0.5
    assert value(run, "learning_rate", 10) == 1e-6
    assert value(run, "loss", 10, "eval") == 0.7
    assert set(run.history["name"]) == {"loss", "rewards/accuracies", "learning_rate"}


def test_llamafactory_v1(tmp_path: Path, imported: Importing) -> None:
    rows = [{"step": 5, "total_steps": 50, "loss": 0.6, "rewards/chosen": 0.1, "logps/chosen": -30.0, "epoch": 0.1}]
    result, run = imported(jsonl(tmp_path / "trainer_log.jsonl", rows))
    assert (result["format"], result["trainer_version"]) == ("llamafactory", "v1")
    assert value(run, "logps/chosen", 5) == -30.0


def test_llamafactory_logps_are_means_under_ipo_orpo_simpo_and_sums_else(tmp_path: Path, imported: Importing) -> None:
    rows = [{"step": 5, "total_steps": 9, "loss": 0.6, "logps/chosen": -1.5}]
    path = jsonl(tmp_path / "trainer_log.jsonl", rows)
    _, run = imported(path, loss=("ipo",), beta=0.1)
    assert run.info.logps == "mean"
    assert value(run, "ce/chosen", 5) == 1.5
    assert value(run, "ppl_seq_geomean/chosen", 5) == pytest.approx(math.exp(1.5), rel=1e-15)
    assert bool(run.history.set_index("name").loc["ce/chosen", "derived"]) is True
    _, run = imported(path, loss=("sigmoid",), beta=0.1)
    assert run.info.logps == "sum"
    assert "ce/chosen" not in set(run.history["name"])
    _, run = imported(path, loss=("sigmoid",), beta=0.1, logps="mean")
    assert run.info.logps == "mean"
    _, run = imported(path)  # nothing decides between -1.5 as a sum of a short answer and as a mean
    assert run.info.logps is None


@pytest.mark.parametrize(
    ("version", "expected"), [("0.28.0", "mean"), ("0.29.0", "sum"), ("1.16.0", "sum"), ("0.7.11", "mean")]
)
def test_trl_ipo_logps_are_means_until_0_28(tmp_path: Path, imported: Importing, version: str, expected: str) -> None:
    rows = [{"step": 5, "loss": 0.6, "logps/chosen": -1.5, "rewards/chosen": 0.0}]
    _, run = imported(
        jsonl(tmp_path / "log.jsonl", rows), loss=("ipo",), beta=0.1, trainer="trl", trainer_version=version
    )
    assert run.info.logps == expected


def test_swift_string_steps_doubled_rows_and_the_last_line_with_everything(tmp_path: Path, imported: Importing) -> None:
    one = {"loss": 0.69, "token_acc": 0.8, "rewards/margins": 0.1, "memory(GiB)": 11.2, "train_speed(iter/s)": 0.02,
           "global_step/max_steps": "1/94", "percentage": "1.06%", "elapsed_time": "20s", "epoch": 0.01}  # fmt: skip
    two = {**one, "loss": 0.6, "global_step/max_steps": "2/94"}
    last = {"last_model_checkpoint": "x", "best_metric": 0.1, "global_step": 94, "memory": 12.0,
            "log_history": [{"loss": 0.69, "step": 1}, {"loss": 0.6, "step": 2},
                            {"eval_loss": 0.5, "step": 3}]}  # fmt: skip
    result, run = imported(jsonl(tmp_path / "logging.jsonl", [one, one, two, two, last]))
    assert (result["format"], result["trainer"], result["duplicates"], result["skipped"]) == (
        "swift",
        "ms-swift",
        2,
        [],
    )
    assert steps(run, "loss") == [1, 2]
    assert value(run, "mean_token_accuracy", 1) == 0.8
    assert value(run, "loss", 3, "eval") == 0.5
    assert result["summary_rows"] == 1


def test_swift_integer_steps(tmp_path: Path, imported: Importing) -> None:
    rows = [{"loss": 1.5, "acc": 0.6, "memory(GiB)": 16.79, "epoch": 0.05, "global_step": 5}]
    result, run = imported(jsonl(tmp_path / "logging.jsonl", rows))
    assert (value(run, "loss", 5), result["trainer"]) == (1.5, "ms-swift")


def test_h2o_charts(tmp_path: Path, imported: Importing) -> None:
    """null is NaN; Perplexity is ppl_seq_mean of chosen; ppl_seq_geomean = exp(ce) is derived; lr lies under meta."""
    document = {
        "train": {"loss": {"steps": [8, 16], "values": [0.7, None]}},
        "validation": {
            "Perplexity": {"steps": [16], "values": [3.5]},
            "chosen_cross_entropy_loss": {"steps": [16], "values": [1.25]},
            "rejected_perplexity": {"steps": [16], "values": [4.5]},
            "chosen_rewards": {"steps": [16], "values": [0.2]},
            "rejected_rewards": {"steps": [16], "values": [-0.3]},
        },
        "meta": {"lr": {"steps": [8, 16], "values": [1e-5, 5e-6]}},
    }
    path = tmp_path / "charts_falcon.json"
    path.write_text(json.dumps(document))
    result, run = imported(path)
    assert (result["format"], result["trainer"]) == ("h2o", "h2o-llmstudio")
    assert math.isnan(value(run, "loss", 16))
    assert value(run, "ppl_seq_mean/chosen", 16, "eval") == 3.5
    assert value(run, "ppl_seq_mean/rejected", 16, "eval") == 4.5
    assert value(run, "ce/chosen", 16, "eval") == 1.25
    assert value(run, "ppl_seq_geomean/chosen", 16, "eval") == pytest.approx(math.exp(1.25), rel=1e-15)
    assert value(run, "rewards/margins", 16, "eval") == 0.5
    assert value(run, "learning_rate", 16) == 5e-6
    derived = set(run.history.loc[run.history["derived"].eq(True), "name"])
    assert derived == {"ppl_seq_geomean/chosen", "rewards/margins"}


def test_h2o_fractional_steps_are_numbered_and_broken_charts_reported(tmp_path: Path, imported: Importing) -> None:
    document = {
        "train": {"loss": {"steps": [0.25, 0.5, 1.0], "values": [0.7, 0.6, "x"]}},
        "validation": {"loss": {"steps": [1.0], "values": [0.5, 0.4]}},
    }
    path = tmp_path / "charts_x.json"
    path.write_text(json.dumps(document))
    result, run = imported(path)
    assert steps(run, "loss") == [0, 1]
    assert sorted(s["why"] for s in result["skipped"]) == [
        "train/loss: a point is not a number",
        "validation/loss: steps and values differ in length",
    ]


def test_h2o_in_the_zip_of_its_download(tmp_path: Path, imported: Importing) -> None:
    with zipfile.ZipFile(tmp_path / "logs_run.zip", "w") as archive:
        archive.writestr("charts_run.json", json.dumps({"train": {"loss": {"steps": [1], "values": [0.5]}}}))
        archive.writestr("cfg.yaml", "training:\n  loss_function: DPOLoss\n  beta: 0.3\nllm_backbone: h2oai/x\n")
        archive.writestr("logs.log", "2024 INFO nothing here\n")
    result, run = imported(tmp_path / "logs_run.zip")
    assert (result["format"], value(run, "loss", 1)) == ("h2o", 0.5)
    assert (run.meta["loss"]["types"], run.meta["loss"]["beta"]) == (["sigmoid"], 0.3)
    assert run.meta["model"]["name"] == "h2oai/x"


def test_torchtune_text_and_jsonl(tmp_path: Path, imported: Importing) -> None:
    """`Step N | k:v k:v ` with a trailing space; log_probs are sums, of the last micro-batch on one device."""
    text = (
        "Step 1 | loss:0.693 lr:1e-06 rewards/chosen:0.0 log_probs/chosen:-120.5 log_probs/rejected:-130.25 \n"
        "Step x | loss:0.6 \n"
        "Step 2 | loss:nan lr:2e-06 rewards/chosen:0.1 log_probs/chosen:-119.5 log_probs/rejected:-131 \n"
    )
    path = tmp_path / "log_1718000000.txt"
    path.write_text(text)
    result, run = imported(path)
    assert (result["format"], result["trainer"], result["rows"], result["read"]) == ("torchtune", "torchtune", 3, 2)
    assert value(run, "logps/chosen", 1) == -120.5
    assert math.isnan(value(run, "loss", 2))
    assert result["skipped"] == [{"line": 2, "why": "not of the form 'Step N | name:value'"}]
    rows = [{"step": 1, "loss": 0.693, "log_probs/chosen": -120.5, "tokens_per_second_per_gpu": 900.0}]
    result, run = imported(jsonl(tmp_path / "log.jsonl", rows))
    assert (value(run, "logps/chosen", 1), result["trainer"]) == (-120.5, "torchtune")


def test_open_instruct_singular_names(tmp_path: Path, imported: Importing) -> None:
    rows = [
        {"training_step": 3, "train_loss": 0.6, "rewards/accuracy": 0.75, "rewards/margin": 0.4, "logps/chosen": -50}
    ]
    result, run = imported(jsonl(tmp_path / "log.jsonl", rows))
    assert (value(run, "rewards/accuracies", 3), value(run, "rewards/margins", 3), value(run, "loss", 3)) == (
        0.75,
        0.4,
        0.6,
    )
    assert result["trainer"] == "open-instruct"


def test_jsonl_rows_may_nest_their_metrics_and_name_their_split(tmp_path: Path, imported: Importing) -> None:
    rows = [
        {"step": 1, "metrics": {"loss": 0.6, "rewards/chosen": 0.1}},
        {"step": 1, "split": "validation", "loss": 0.7},
        "not json",
        "[1]",
        {"step": 2, "loss": "NaN"},
    ]
    result, run = imported(jsonl(tmp_path / "metrics.jsonl", rows))
    assert (value(run, "loss", 1), value(run, "loss", 1, "eval")) == (0.6, 0.7)
    assert math.isnan(value(run, "loss", 2))
    assert [s["line"] for s in result["skipped"]] == [3, 4]
    assert (result["rows"], result["read"]) == (5, 3)


def test_wandb_export_csv(tmp_path: Path, imported: Importing) -> None:
    text = (
        '"Step","tough-sun-1 - train/loss","tough-sun-1 - train/loss__MIN","tough-sun-1 - train/loss__MAX"\n'
        '"10","0.69","0.6","0.7"\n"20","","",""\n"30","NaN","",""\n"x","0.5","",""\n"40","0.5"\n'
    )
    path = tmp_path / "wandb_export.csv"
    path.write_text(text)
    result, run = imported(path)
    assert (result["format"], steps(run, "loss")) == ("csv", [10, 30])
    assert value(run, "loss", 10) == 0.69
    assert math.isnan(value(run, "loss", 30))
    assert [s["line"] for s in result["skipped"]] == [5, 6]


def test_wide_csv_prefers_the_global_step_and_knows_prefixes(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "history.csv"
    path.write_text("_step,train/global_step,train/loss,eval/rewards/chosen,_runtime\n0,10,0.6,,1\n1,10,,0.5,2\n")
    _, run = imported(path)
    assert (value(run, "loss", 10), value(run, "rewards/chosen", 10, "eval")) == (0.6, 0.5)


def test_tensorboard_scalar_csv_and_notebook_table_and_long_table(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "run-dpo-tag-train_loss.csv"
    path.write_text("Wall time,Step,Value\n1700000000.5,5,0.6\n")
    _, run = imported(path)
    assert value(run, "loss", 5) == 0.6
    path = tmp_path / "table.tsv"
    path.write_text("Step\tTraining Loss\tValidation Loss\trewards / chosen\tlogps / rejected\n5\t0.6\t0.7\t0.1\t-50\n")
    _, run = imported(path)
    assert (value(run, "loss", 5), value(run, "loss", 5, "eval")) == (0.6, 0.7)
    assert (value(run, "rewards/chosen", 5), value(run, "logps/rejected", 5)) == (0.1, -50.0)
    path = tmp_path / "long.csv"
    path.write_text("step,split,name,value\n5,eval,loss,0.4\n5,train,rewards/chosen,0.2\n")
    _, run = imported(path)
    assert (value(run, "loss", 5, "eval"), value(run, "rewards/chosen", 5)) == (0.4, 0.2)


@pytest.mark.parametrize("cut", [0, 20])
def test_gzip_also_cut_off(tmp_path: Path, imported: Importing, cut: int) -> None:
    rows = [{"step": i, "loss": 0.5 + 0.37 * (i * 7919 % 13)} for i in range(400)]
    jsonl(tmp_path / "log.jsonl", rows)
    packed = gzip.compress((tmp_path / "log.jsonl").read_bytes())
    (tmp_path / "log2.jsonl.gz").write_bytes(packed[: len(packed) - cut])
    result, run = imported(tmp_path / "log2.jsonl.gz")
    assert steps(run, "loss")[:3] == [0, 1, 2]
    assert (result["read"] == 400) == (cut == 0)
    assert any("end early" in s["why"] for s in result["skipped"]) == (cut > 0)


def test_a_zip_that_climbs_out_is_not_followed(tmp_path: Path, imported: Importing) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside.jsonl", '{"step": 1, "loss": 9}\n')
        archive.writestr("log.jsonl", '{"step": 1, "loss": 0.5}\n')
    result, run = imported(tmp_path / "evil.zip")
    assert value(run, "loss", 1) == 0.5
    assert not (tmp_path / "outside.jsonl").exists()
    assert result["skipped"] == [
        {"line": None, "why": "an archive member that points outside", "file": "../outside.jsonl"}
    ]


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20,
                                     b"PK\x03\x04broken",
                                     b"hello world\n", b"{", b"[1, 2]", b"\x1f\x8b\x08\0broken", b":W&B\xe1\xbe\0",
                                     b"\x93NUMPY\x01\0", b"SQLite format 3\0", b"PAR1"])  # fmt: skip
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, imported: Importing, content: bytes) -> None:
    (tmp_path / "thing.bin").write_bytes(content)
    with pytest.raises(DiagError) as error:
        imported(tmp_path / "thing.bin")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run1").exists()


def test_nested_rows_are_joined_by_slashes(tmp_path: Path, imported: Importing) -> None:
    """A tracker's history that keeps its groups nested, and an object keyed by steps."""
    nested = {"_step": 3, "train": {"loss": 0.6, "rewards": {"chosen": 0.25}}, "eval": {"loss": 0.7}}
    _, run = imported(jsonl(tmp_path / "history.jsonl", [nested]))
    assert (value(run, "loss", 3), value(run, "rewards/chosen", 3), value(run, "loss", 3, "eval")) == (0.6, 0.25, 0.7)
    (tmp_path / "by_step.json").write_text(json.dumps({"5": {"loss": 0.6}, "10": {"loss": 0.5}}))
    _, run = imported(tmp_path / "by_step.json")
    assert [value(run, "loss", s) for s in (5, 10)] == [0.6, 0.5]


def test_late_lines_are_put_in_order_and_are_no_restart(tmp_path: Path, imported: Importing) -> None:
    rows = [{"step": s, "loss": s / 100} for s in (10, 30, 20, 40)]
    result, run = imported(jsonl(tmp_path / "log.jsonl", rows))
    assert steps(run, "loss") == [10, 20, 30, 40]
    assert (result["duplicates"], run.info.source.backtracks) == (0, ())


def test_openrlhf_evaluations_name_their_own_step(tmp_path: Path, imported: Importing) -> None:
    rows = [{"train/global_step": 5, "train/loss": 0.6, "train/chosen_reward": 0.1, "_step": 0},
            {"eval/global_step": 5, "eval/eval_loss": 0.5, "_step": 1}]  # fmt: skip
    _, run = imported(jsonl(tmp_path / "log.jsonl", rows))
    assert (value(run, "loss", 5), value(run, "loss", 5, "eval")) == (0.6, 0.5)


def test_orpo_has_mean_log_probs_and_no_reference(tmp_path: Path, imported: Importing) -> None:
    """ORPO's rewards are beta x the mean log-prob: what logps - rewards / beta gives is 0, no reference."""
    rows = [{"step": 1, "loss": 2.0, "nll_loss": 1.5, "log_odds_ratio": -0.5, "logps/chosen": -1.5,
             "rewards/chosen": -0.15, "logps/rejected": -2.0, "rewards/rejected": -0.2}]  # fmt: skip
    _, run = imported(jsonl(tmp_path / "log.jsonl", rows), beta=0.1)
    assert run.info.logps == "mean"
    assert value(run, "ce/rejected", 1) == 2.0
    assert not any(n.startswith("ref_logps") for n in run.history["name"])
    assert run.info.loss_names == ("orpo",)
