"""dpo-train trainer=sft on files of one answer a row: each form trains, with the tokens that its answers have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.train import job
from dpo_diag.records import load_run
from tests.training.tiny import make_model, make_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def talk(i: int) -> list[dict[str, str]]:
    return [said("user", f"{i} cat"), said("assistant", " red"), said("user", "dog?"), said("assistant", " two blue")]


def sharegpt(i: int) -> list[dict[str, str]]:
    return [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in talk(i)]


FORMS: dict[str, tuple[Any, list[str], list[str]]] = {
    "messages": (lambda i: {"messages": talk(i)}, [], [" red<eos>", " two blue<eos>"]),
    "last": (lambda i: {"messages": talk(i)}, ["sft.loss_on=last"], [" two blue<eos>"]),
    "sharegpt": (lambda i: {"conversations": sharegpt(i)}, ["data=sharegpt"], [" red<eos>", " two blue<eos>"]),
    "completion": (lambda i: {"prompt": f"{i} cat:", "completion": " red"}, [], [" red<eos>"]),
    "turns": (lambda i: {"prompt": talk(i)[:1], "completion": talk(i)[1:2]}, [], [" red<eos>"]),
    "alpaca": (lambda i: {"instruction": "cat", "input": f"{i}", "output": " red"}, [], [" red<eos>"]),
    "text": (lambda i: {"text": f"cat red {i:02}"}, ["sft=whole_sequence"], ["cat red NN<eos>"]),
}
"""Form -> a row, further overrides, the trained pieces of each row."""


@pytest.fixture
def chatty(tmp_path: Path) -> list[str]:
    """Overrides that name a tiny model with a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    make_model(seed=3).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return [
        "trainer=sft", "model=hub", f"model.name={tmp_path / 'model'}", "model.device=cpu", "prompts=none",
        f"output_root={tmp_path / 'runs'}", "trainer.max_steps=2", "trainer.eval_steps=1", "trainer.batch_size=2",
        "trainer.max_length=64", "data=jsonl", "data.eval_share=0.3", "data.max_bad_share=0.2",
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_trains_on_its_answers(
    form: str, chatty: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twelve rows and the first one again: one is dropped, the others are trained and held out. What is trained is
    each turn of the assistant with its end token, and no other; of a text all of it."""
    make, options, trained = FORMS[form]
    rows = [make(i) for i in range(12)]
    assert run_app("dpo-train", "config", job, [*chatty, write(tmp_path / "d.jsonl", [*rows, rows[0]]), *options]) == 0
    printed = capfd.readouterr()
    folder = Path(printed.out.splitlines()[-1])
    run = load_run(folder)
    assert run.meta["status"] == "finished" and run.meta["method"] == "sft"
    data = run.meta["data"]
    assert data["dropped"] == {"duplicated row": 1} and data["n_train"] + data["n_held_out"] == 12
    assert 0 < data["n_held_out"] < 12
    report = json.loads((folder / "data_report.json").read_text())
    pieces = [piece["text"] for piece in report["sample"]["sequence"] if piece["trained"]]
    number = f"{report['sample']['row']}"
    assert [piece if form != "text" else piece.replace(piece[8:10], "NN") for piece in pieces] == trained, number
    assert "12 of 13 rows read as one answer a row (SFT)" in printed.err
    history = run.history
    ce = history[(history["split"] == "eval") & (history["name"] == "ce/response")]
    assert ce["step"].tolist() == [0, 1, 2] and (ce["value"] > 0).all()
    counted = history[(history["split"] == "eval") & (history["name"] == "loss_on_prompt")]["value"]
    # Earlier turns of the assistant stand in a prompt and are its: nothing that the user wrote is in the loss.
    assert (counted == 0).all()


def test_texts_without_turns_need_the_whole_sequence(
    chatty: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", [{"text": f"cat red {i}"} for i in range(8)])
    assert run_app("dpo-train", "config", job, [*chatty, path]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert "texts without turns" in said and "sft=whole_sequence" in said


def test_a_training_of_pairs_refuses_them_and_names_the_other_trainer(
    chatty: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", [{"messages": talk(i)} for i in range(8)])
    assert run_app("dpo-train", "config", job, [*chatty[1:], path]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert "8 of 8 rows: 8 one answer a row or none, no pairs" in said and "dpo-train trainer=sft" in said
