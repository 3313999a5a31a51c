"""What is a secret, and what is none: by keys, inside texts, and in what Hydra and a submit write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from dpo_diag.commands.diag import main
from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.checksums import read_yaml
from dpo_diag.records.jobs import begin_job, end_job, guard_configuration, job_state
from dpo_diag.records.run_info import ended_by
from dpo_diag.records.secrets import (
    arguments_without_secrets,
    is_secret,
    redacted,
    redacted_words,
    secrets_given,
    without_secrets,
)

SECRET = """
hub_token hubToken HF_TOKEN aws_secret_access_key private_key secret_key passphrase authorization session_token api-key
x-api-key APIKEY apikey OPENAI_API_KEY access_key_id db_password PASSWORD credentials hub_model_token token auth_token
trainer.args.hub_token wandb_api_key ssh_private_key accessToken client_secret http_auth webhook KAGGLE_KEY
JUPYTER_TOKEN AZURE_STORAGE_KEY
""".split()  # noqa: SIM905
NOT_SECRET = """
num_tokens pad_token_id tokenizer max_tokens keyword keywords n_tokens eos_token pad_token ppl_token token_id token_ids
tokens loss_per_token secretary pair_key key monkey told_apart_by num_input_tokens_seen image_token author unk_token
include_tokens_per_second session user_id access passes bypass token.path client_keyword digit_token robot_tokens
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", SECRET)
@pytest.mark.parametrize("value", ["v3ry", 12345, ["a", "b"], {"user": "x"}])
def test_secret_keys_hide_text_numbers_and_lists(key: str, value: object) -> None:
    if key == "token" and value == 12345:
        return  # an id of the vocabulary
    assert without_secrets({key: value}) == {key: "[redacted]"}


@pytest.mark.parametrize("key", NOT_SECRET)
@pytest.mark.parametrize("value", ["v3ry", 12345, ["a", "b"]])
def test_other_keys_hide_nothing(key: str, value: object) -> None:
    assert without_secrets({key: value}) == {key: value}


def test_switches_special_tokens_and_references_to_the_environment_stay() -> None:
    kept = {"use_auth_token": True, "password": None, "user_token": "<|user|>", "hub_token": "${oc.env:HF_TOKEN}"}
    assert without_secrets(kept) == kept
    assert is_secret("hub_token", "${oc.env:HF_TOKEN,hf_default}")


def test_counts_under_an_owner_s_words_stay() -> None:
    counts = {"num_user_tokens": 512, "num_multimodal_tokens": 256, "user_tokens": [1, 2], "forward_pass": 2}
    assert without_secrets(counts) == counts
    assert is_secret("user_tokens", ["a"]) and is_secret("db_pass", "12345678")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("+trainer.args.hub_token=s3cret", "+trainer.args.hub_token=[redacted]"),
        ("https://user:p4ss@host/x?api_key=abc&b=1", "https://user:[redacted]@host/x?api_key=[redacted]&b=1"),
        ("postgres://u:p@ss@h:5/db", "postgres://u:[redacted]@h:5/db"),
        ("clone https://ghp_abcdefghijklmnopqrst12@github.com/x", "clone https://[redacted]@github.com/x"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: [redacted] [redacted]"),
        ("{'hub_token': 's3', 'n': 1}", "{'hub_token': [redacted], 'n': 1}"),
        ("data={password: x, a: 1}", "data={password: [redacted], a: 1}"),
        ("-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----", "[redacted]"),
        ("loss: 0.5; num_tokens: 5 at http://h:80/x 10:30", "loss: 0.5; num_tokens: 5 at http://h:80/x 10:30"),
        ("expected token: a text", "expected token: a text"),
        ("password: must be set; secret: not given", "password: must be set; secret: not given"),
        ("password: mustard7, passwd: hunter", "password: [redacted], passwd: [redacted]"),
        ("password=must api_key: 'must' secret:must", "password=[redacted] api_key: [redacted] secret:[redacted]"),
        ("password: please, passwd: enter\npass_phrase: x", "password: [redacted], passwd: [redacted]\npass_phrase: x"),
        ("password: missing; secret: use at least 8", "password: missing; secret: use at least 8"),
        ("secret={a: {b: {c: {d: {e: {f: x9}}}}}} tail", "secret=[redacted] tail"),
        ("x={a: {b: {c: {d: {e: {password: x9}}}}}} y", "x={a: {b: {c: {d: {e: {password: [redacted]}}}}}} y"),
        ('{"password": {"a": "x}y", "b": [1]}, "n": 1}', '{"password": [redacted], "n": 1}'),
        ("token=[PAD] token=[pad]", "token=[PAD] token=[redacted]"),
        ("api_keys=[k1, [k2, k3", "api_keys=[redacted]"),
        ("a basic tokenizer; bearer certificates", "a basic tokenizer; bearer certificates"),
        ("basic dXNlcjpwYXNz1234", "basic [redacted]"),
        ("/d/hf_ultrafeedbackbinarized/sk-learn-a-long-name", "/d/hf_ultrafeedbackbinarized/sk-learn-a-long-name"),
        (f"hf_{'aB3' * 11}x and sk-proj-abcdefghij_klmnop", "[redacted] and [redacted]"),
    ],
)  # fmt: skip
def test_secrets_inside_a_text(text: str, said: str) -> None:
    assert redacted(text) == said


def test_a_configuration_that_no_reader_takes_ends_its_job_in_one_line(tmp_path: Path) -> None:
    """YAML beyond 256 KiB; what was written of it holds no secret all the same."""
    config = tmp_path / ".hydra" / "config.yaml"
    config.parent.mkdir()
    config.write_text("a:\n" + "- word\n" * 40_000 + "hub_token: s3cret\n")
    with pytest.raises(DiagError, match=r"in .*config.yaml; got more than 256 KiB; hint: .*data.path=FILE"):
        guard_configuration(tmp_path)
    assert config.read_text().endswith("hub_token: [redacted]\n")


def test_a_path_in_the_environment_is_printed_as_it_is(tmp_path: Path) -> None:
    """ORIG_PWD is a folder by its value, and the run folders that a command prints lie below it."""
    environment = {"ORIG_PWD": str(tmp_path), "HF_TOKEN": "s3cret-of-the-hub"}
    assert secrets_given([], environment) == {"s3cret-of-the-hub"}


def test_a_command_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--hub-token", "abc def", "--n", "1", "hub_token=a b", "+x.api_keys=[a,b]", "seed=1"]
    hidden = ("--hub-token", "[redacted]", "--n", "1", "hub_token=[redacted]", "+x.api_keys=[redacted]", "seed=1")
    assert redacted_words(words) == hidden
    monkeypatch.setattr(sys, "argv", ["dpo-train", *words])
    with arguments_without_secrets():
        assert sys.argv == ["dpo-train", *hidden]
    assert sys.argv[1:] == words


def test_what_hydra_wrote_of_a_job_and_of_its_multirun(tmp_path: Path) -> None:
    job = tmp_path / "0"
    (job / ".hydra").mkdir(parents=True)
    config = {"seed": 1, "trainer": {"args": {"hub_token": "s3cret", "hub_strategy": "end"}}}
    hydra = {"hydra": {"overrides": {"task": ["+trainer.args.hub_token=s3cret"]}, "job": {"override_dirname": "hub_token=s3cret"}}}  # fmt: skip # noqa: E501
    for path, document in {
        job / ".hydra" / "config.yaml": config,
        job / ".hydra" / "overrides.yaml": ["+trainer.args.hub_token=s3cret x", "seed=1"],
        tmp_path / "multirun.yaml": hydra,
    }.items():
        path.write_text(yaml.safe_dump(document))
    begin_job(job, 0)
    guard_configuration(job)
    end_job(job, "failed", "ValueError: cannot open https://u:s3cret@h/x")
    assert all(b"s3cret" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    written = (tmp_path / "multirun.yaml").stat().st_mtime_ns
    guard_configuration(job)
    assert (tmp_path / "multirun.yaml").stat().st_mtime_ns == written  # another job beside it may be reading it
    assert read_yaml(job / ".hydra" / "config.yaml")["trainer"]["args"]["hub_strategy"] == "end"
    assert read_yaml(job / ".hydra" / "overrides.yaml") == ["+trainer.args.hub_token=[redacted]", "seed=1"]
    state = job_state(job)
    assert state is not None and state.error == "ValueError: cannot open https://u:[redacted]@h/x"


def test_run_json_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = RunWriter(tmp_path / "r")
    writer.update(
        data={"path": "https://u:s3cret@h/x.jsonl", "aws": {"secret_access_key": ["s3cret"]}, "num_tokens": 7}
    )
    writer.finish("failed", ended_by(RuntimeError("bad hub_token=s3cret"))[1])
    assert b"s3cret" not in (tmp_path / "r" / "run.json").read_bytes()
    assert load_run(tmp_path / "r").meta["data"]["num_tokens"] == 7
    assert main(["explain", str(tmp_path / "api_key=s3cret")]) == 1
    assert "s3cret" not in capsys.readouterr().err
    command = ["submit", "task=sql", f"output_root={tmp_path / 'o'}", "--sbatch", "export=WANDB_API_KEY=s3cret"]
    assert main([*command, "--dry-run"]) == 2
    assert "a secret is not written" in capsys.readouterr().err and not (tmp_path / "o").exists()
