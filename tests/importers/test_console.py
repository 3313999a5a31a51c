"""Console logs: printed rows between progress frames, in all the states in which people keep them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.importers.literal import parse_row
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value


def frame(done: int, total: int = 250, label: str = "") -> str:
    return f"\r{label}{100 * done // total:3d}%|█▏        | {done}/{total} [00:10<02:00,  1.23it/s]"


def log(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_rows_take_their_step_from_the_frame_that_follows(tmp_path: Path, imported: Importing) -> None:
    """tqdm draws the bar again right after a row; the frame before may lag (7 for 10): 10, 20, 30 is right."""
    text = "warming up\n"
    for done in (10, 20, 30):
        text += frame(done - 3) + "\r" + " " * 40 + "\r"
        text += f"{{'loss': '0.6{done}', 'learning_rate': '5e-06', 'epoch': '{done / 100}'}}\n" + frame(done)
    result, run = imported(log(tmp_path / "train.log", text))
    assert (result["format"], result["steps_from"]) == ("console", "progress frames")
    assert steps(run, "loss") == [10, 20, 30]
    assert value(run, "loss", 20) == 0.62
    assert run.history["epoch"].tolist()[::2] == [0.1, 0.2, 0.3]


def test_frames_printed_before_their_rows_only(tmp_path: Path, imported: Importing) -> None:
    """A filtered log: the frame after a row is the next row's own, so row k of 5 is step 10 k, not 10 (k + 1)."""
    text = "".join(f"[rank0]: {frame(d, 50)}\r[rank0]: {{'loss': '0.6', 'epoch': '{d / 25:.3g}'}}\n" for d in
                   (10, 20, 30, 40, 50))  # fmt: skip
    result, run = imported(log(tmp_path / "train.log", text + "{'train_runtime': '9.1', 'epoch': '2'}\n"))
    assert steps(run, "loss") == [10, 20, 30, 40, 50]
    assert result["steps_from"] == "progress frames"


def test_an_evaluation_bar_between_does_not_count(tmp_path: Path, imported: Importing) -> None:
    text = ""
    for done in (10, 20, 30):
        text += frame(done) + f"{{'loss': 0.6, 'epoch': {done / 100}}}\n" + frame(done)
        text += "".join(frame(i, 40) for i in range(41))
        text += (
            f"\r{{'eval_loss': 0.{done}, 'eval_runtime': 3.1, 'epoch': {done / 100}}}\n" + frame(40, 40) + frame(done)
        )
    _, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == [10, 20, 30]
    assert steps(run, "loss", "eval") == [10, 20, 30]
    assert value(run, "loss", 20, "eval") == 0.2


def test_late_rows_are_numbered_by_their_epoch(tmp_path: Path, imported: Importing) -> None:
    """A buffered stdout arrives after the bar: every row lies beside the last frame, the epoch still tells the step."""
    text = "".join(frame(i, 100) for i in range(101)) + "\n"
    text += "".join(f"{{'loss': 0.{99 - i // 2}, 'epoch': {i / 50}}}\n" for i in range(10, 101, 10))
    text += "{'train_runtime': 5.0, 'train_loss': 0.5, 'epoch': 2.0}\n"
    text += "TrainOutput(global_step=100, training_loss=0.5, metrics={'train_runtime': 5.0})\n"
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == list(range(10, 101, 10))
    assert result["steps_from"] == "epoch x 50 steps per epoch"
    assert (result["rows"], result["summary_rows"]) == (11, 1)


def test_without_frames_or_epochs_the_rows_are_counted(tmp_path: Path, imported: Importing) -> None:
    text = "logging_steps=20\n" + "".join(f"{{'loss': 0.{i}, 'grad_norm': 1.0}}\n" for i in range(3, 7))
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == [20, 40, 60, 80]
    assert "row number x 20" in result["steps_from"]


def test_rows_of_unknown_distance_are_rows_and_no_steps(tmp_path: Path, imported: Importing) -> None:
    """Nothing names a step: the rows are counted, run.json says so, and `--logging-steps 10` makes them steps."""
    text = "".join(f"{{'loss': 0.{i}, 'grad_norm': 1.0}}\n" for i in range(3, 7))
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == [1, 2, 3, 4]
    assert run.info.source.steps == "counted" and not run.info.steps_are_stated and run.info.step_word == "row"
    assert result["steps_from"] == "row numbers: the log states no steps (--logging-steps N gives them)"
    _, run = imported(log(tmp_path / "again.log", text), logging_steps=10)
    assert steps(run, "loss") == [10, 20, 30, 40]
    assert run.info.source.steps == "interval" and run.info.steps_are_stated


def test_four_digit_strings_ansi_ranks_and_wrapped_scalars(tmp_path: Path, imported: Importing) -> None:
    text = (
        "[rank0]: \x1b[32m{'loss': '0.6969', 'num_tokens': '1.59e+05', 'step': 1}\x1b[0m\n"
        "[rank1]: {'loss': '0.1', 'num_tokens': '2e+05', 'step': 1}\n"
        "INFO 12:00 {'loss': tensor(0.5, device='cuda:0'), 'rewards/chosen': np.float64(-0.25), 'step': 2}\n"
        '2024-01-01 {"loss": 0.4, "rewards/chosen": -Infinity, "step": 3}\n'
        "{'loss': nan, 'rewards/chosen': -inf, 'grad_norm': None, 'step': 4}\n"
    )
    result, run = imported(log(tmp_path / "train.log", text))
    assert [value(run, "loss", s) for s in (1, 2, 3)] == [0.6969, 0.5, 0.4]
    assert math.isnan(value(run, "loss", 4))
    assert value(run, "rewards/chosen", 4) == -math.inf == value(run, "rewards/chosen", 3)
    assert value(run, "num_tokens", 1) == 159000.0
    assert result["skipped"] == []
    assert "1 rows of other ranks left out" in result["notes"]


def test_a_frame_printed_into_a_row_is_taken_out(tmp_path: Path, imported: Importing) -> None:
    text = "{'loss': 0.61, 'grad_" + frame(12) + "\rnorm': 2.5, 'step': 12}\n"
    _, run = imported(log(tmp_path / "train.log", text))
    assert (value(run, "loss", 12), value(run, "grad_norm", 12)) == (0.61, 2.5)


def test_a_cut_row_is_reported_by_line(tmp_path: Path, imported: Importing) -> None:
    text = "{'loss': 0.7, 'step': 1}\nnoise\n{'loss': 0.6, 'grad_nor\n{'loss': 0.5, 'step': 3}\n{'loss': 0.4 0.3}\n"
    result, run = imported(log(tmp_path / "train.log", text))
    assert steps(run, "loss") == [1, 3]
    assert result["skipped"] == [
        {"line": 3, "why": "a row is cut off: no closing brace"},
        {"line": 5, "why": "a row cannot be parsed as a dictionary"},
    ]
    assert (result["rows"], result["read"]) == (4, 2)


def test_of_sft_and_dpo_in_one_file_the_dpo_training_is_taken(tmp_path: Path, imported: Importing) -> None:
    text = "".join(f"{{'loss': 2.{i}, 'epoch': {i / 10}, 'step': {i}}}\n" for i in range(1, 9))
    text += "{'train_runtime': 5.0, 'train_loss': 2.0, 'epoch': 1.0}\n"
    text += "".join(f"{{'loss': 0.{7 - i}, 'rewards/chosen': 0.1, 'step': {i}}}\n" for i in range(1, 4))
    text += "{'train_runtime': 5.0, 'train_loss': 0.5}\n"
    result, run = imported(log(tmp_path / "train.log", text))
    assert [value(run, "loss", s) for s in (1, 2, 3)] == [0.6, 0.5, 0.4]
    assert len(steps(run, "loss")) == 3
    note = "2 trainings in this file: number 2 is taken (3 rows), 1 left out (8 rows; --run NUMBER takes another)"
    assert note in result["notes"]
    _, run = imported(tmp_path / "train.log", run="1")
    assert value(run, "loss", 8) == 2.8
    with pytest.raises(DiagError, match="no such training"):
        imported(tmp_path / "train.log", run="3")


def test_eric_mitchells_rows_count_examples(tmp_path: Path, imported: Importing) -> None:
    """`train stats after N examples: {...}` with strings, sides and sets inside the keys."""
    text = (
        "eval after 0: {'rewards_eval/chosen': '0.0', 'logps_eval/rejected': '-120.5', 'loss/eval': '0.69315'}\n"
        "train stats after 64 examples: {'rewards_train/chosen': '0.01', 'rewards_train/accuracies': '0.5', "
        "'logps_train/chosen': '-90.25', 'loss/train': '0.6925'}\n"
    )
    result, run = imported(log(tmp_path / "train.log", text))
    assert value(run, "logps/rejected", 0, "eval") == -120.5
    assert value(run, "loss", 0, "eval") == 0.69315
    assert (value(run, "logps/chosen", 64), value(run, "loss", 64)) == (-90.25, 0.6925)
    assert result["trainer"] == "eric-mitchell/dpo"
    assert "steps are counted in examples, as the source counts them" in result["notes"]


def test_numbers_in_the_bar_itself_are_read_where_nothing_else_is(tmp_path: Path, imported: Importing) -> None:
    """OpenRLHF prints its metrics as the bar's postfix."""
    text = "".join(
        f"\rTrain step of epoch 0:  {i}%|█| {i}/50 [00:0{i}<01:00, 1.0s/it, loss=0.{70 - i}, acc=0.5,"
        f" chosen_reward={i / 10}, reject_reward=-0.1]"
        for i in range(1, 6)
    )
    result, run = imported(log(tmp_path / "train.log", "start\n" + text), as_name="console")
    assert [value(run, "loss", s) for s in (1, 5)] == [0.69, 0.65]
    assert value(run, "rewards/chosen", 3) == 0.3
    assert result["trainer"] == "openrlhf"


def test_the_loss_that_a_log_names_is_taken_with_its_line(tmp_path: Path, imported: Importing) -> None:
    text = "adam_beta1=0.9\n  LR: 5e-6 | beta: 0.25 | r: 32\n{'loss': 0.69, 'rewards/chosen': 0.0, 'step': 1}\n"
    result, run = imported(log(tmp_path / "train.log", text))
    assert result["beta"] == 0.25
    assert run.meta["source"]["said"]["beta"] == "train.log: 'beta: 0.25' (line 2)"
    assert run.info.loss is None
    assert run.info.loss_reason


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "utf-32", "latin-1"])
def test_other_encodings(tmp_path: Path, imported: Importing, encoding: str) -> None:
    text = "Größe\n{'loss': 0.7, 'step': 1}\r\n{'loss': 0.6, 'step': 2}\r\n"
    (tmp_path / "train.log").write_bytes(text.encode(encoding))
    _, run = imported(tmp_path / "train.log")
    assert [value(run, "loss", s) for s in (1, 2)] == [0.7, 0.6]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{'a': 1, 'b': 'x'}", {"a": 1, "b": "x"}),
        (b"{'a': -inf, 'b': nan}", {"a": -math.inf}),
        (b"{'loss': 0.5, 'text': \"it's\"}", {"loss": 0.5, "text": "it's"}),
        (b"{'a': torch.tensor(0.5), 'b': np.float32(1e-3)}", {"a": 0.5, "b": 0.001}),
        (b"{'a': __import__('os')}", None),
        (b"{'a': 1" + b", 'b': 2" * 20000 + b"}", None),
        (b"{'a', 'b'}", None),
    ],
)
def test_parse_row(text: bytes, expected: dict[str, object] | None) -> None:
    found = parse_row(text)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert {k: found[k] for k in expected} == expected
