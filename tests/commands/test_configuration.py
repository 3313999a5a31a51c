"""Every file in conf/ composes; a wrong override is reported with its nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dpo_diag.commands.hydra_app import register, run_app, to_config
from dpo_diag.commands.overrides import explain_override, quoted_paths
from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checks import check
from dpo_diag.errors import DiagError
from dpo_diag.records.writer import RunWriter

GROUPS = sorted(p.name for p in conf_dir().iterdir() if p.is_dir())
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((conf_dir() / g).glob("*.yaml"))]


def composed(*overrides: str) -> Config:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return to_config(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    assert isinstance(composed(f"{group}={option}"), Config)


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_passes_the_checks(experiment: str, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n")
    own = ["data=jsonl", f"data.path={pairs}"] if experiment.startswith("smollm2") else []
    config = composed(f"experiment={experiment}", *own)
    check(config)
    assert config.name == experiment


def test_the_experiment_has_the_settings_of_issue_594() -> None:
    config = composed("experiment=h2o_594")
    assert (config.peft.kind, config.peft.r, config.peft.alpha, config.peft.dropout) == ("lora", 64, 256, 0.05)
    assert (config.trainer.learning_rate, config.trainer.batch_size, config.trainer.max_grad_norm) == (1e-5, 1, 2.0)
    assert (config.loss.beta, config.trainer.num_train_epochs, config.trainer.disable_dropout) == (0.05, 1.0, False)


def test_the_two_ways_out_differ_from_the_case_in_one_thing() -> None:
    names = ("sql_dpo", "sql_dpo_sft_term", "sql_dpo_high_beta")
    base, term, high = (OmegaConf.structured(composed(f"experiment={name}")) for name in names)
    flat = lambda c: {k: str(v) for k, v in _flatten(OmegaConf.to_container(c)).items()}  # noqa: E731
    differs = lambda c: {k for k, v in flat(c).items() if flat(base).get(k) != v}  # noqa: E731
    assert differs(term) == {"name", "loss.types", "loss.weights"}
    assert differs(high) == {"name", "loss.beta"}
    assert high.loss.beta == 2.0


def _flatten(document: dict, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            out |= _flatten(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.bta=1", "unknown key 'loss.bta'; did you mean loss.beta?"),
        ("trainer.lerning_rate=1", "did you mean trainer.learning_rate?"),
        ("loss=sigmod", "loss has no option 'sigmod'; did you mean sigmoid?"),
        ("loss=choice(dpop,ipos)", "loss has no option 'ipos'; did you mean ipo?"),
        ("loss=glob(zz*)", "loss has no option 'glob(zz*)'"),
        ("experiment=sql_dop", "did you mean sql_dpo?"),
        ("los.beta=1", "did you mean loss?"),
        ("sed=1", "did you mean seed?"),
        ("method=sft", "unknown key 'method'; hint: trainer=sft"),
        ("method=dop", "did you mean trainer.method?"),
        ("learning_rate=1", "did you mean trainer.learning_rate?"),
        ("data.columns.promt=x", "did you mean data.columns.prompt?"),
    ],
)
def test_a_misspelt_override_names_the_nearest(override: str, message: str) -> None:
    reason = explain_override([override])
    assert reason is not None
    assert message in reason


@pytest.mark.parametrize(
    "override",
    [
        "loss.beta=0.1,2",
        "loss=ipo,hinge",
        "loss=choice(dpop,'ipo')",
        "loss=glob(*)",
        "+trainer.args.foo=1",
        "hydra.run.dir=x",
        "trainer.args.a=1",
        "seed=range(0,5)",
    ],
)
def test_a_valid_override_is_left_alone(override: str) -> None:
    assert explain_override([override]) is None


def test_several_data_files_are_quoted_for_hydra_outside_a_sweep() -> None:
    given = ["data.path=a.jsonl,b/*.parquet", "data.eval_path=[a,b]", "data.path='a,b'", "loss.beta=1,2"]
    assert quoted_paths(given) == ["data.path='a.jsonl,b/*.parquet'", *given[1:]]
    assert quoted_paths([*given, "-m"]) == [*given, "-m"]
    assert composed(*quoted_paths(given)[:1]).data.path == "a.jsonl,b/*.parquet"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=sql_dpo", "task=none"], "model.kind is task but there is no task"),
        (["experiment=sql_dpo", "data=jsonl", "data.path=x.jsonl"], "trains on the task's own pairs; in model.kind"),
        (["experiment=sql_dpo", "loss.beta=0"], "loss.beta; got 0"),
        (["experiment=sql_dpo", "loss.types=[foo]"], "unknown loss type"),
        (["experiment=sql_dpo", "loss.types=[exo_pair]"], "exo_pair takes its logarithm"),
        (
            ["experiment=sql_dpo", "loss=epsilon_dpo", "trainer.precompute_ref_log_probs=true"],
            "trainer.precompute_ref_log_probs; got True; expected false: epsilon_dpo asks for the reference's",
        ),
        (["experiment=sql_dpo", "model.dtype=fp8"], "model.dtype; got fp8; expected one of auto"),
        (["experiment=sql_dpo", "prompts.n_samples=3", "prompts.temperature=0"], "prompts.n_samples; got 3"),
        (["experiment=sql_dpo", "data.max_bad_share=2"], "data.max_bad_share; got 2"),
        (["model.name=x", "data.path=/nowhere.jsonl"], "data.path; got /nowhere.jsonl"),
        (["data.path=/nowhere.jsonl"], "model.name; got nothing"),
        (
            ["experiment=sql_sft", "sft=whole_sequence", "+trainer.args.assistant_only_loss=true"],
            "sft.loss_on; got all; expected assistant, as",
        ),
        (
            ["experiment=sql_dpo", "probes.kl=true", "loss=simpo"],
            "probes.kl; got true; expected false: simpo looks",
        ),
        (
            ["experiment=sql_dpo", "probes.kl=true", "+trainer.args.precompute_ref_log_probs=true"],
            "probes.kl; got true; expected false: precomputed sums",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(DiagError, match=message) as caught:
        check(composed(*overrides))
    assert "\n" not in str(caught.value)
    assert caught.value.usage


def test_a_kl_that_can_be_taken_passes() -> None:
    check(composed("experiment=sql_dpo", "probes.kl=true"))
    check(composed("experiment=sql_sft", "probes.kl=true", "loss=simpo"))


def test_usage_errors_exit_with_2_and_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_app("dpo-train", "config", lambda cfg: None, ["loss.bta=1"]) == 2
    assert capsys.readouterr().err == "dpo-train: unknown key 'loss.bta'; did you mean loss.beta?\n"
    assert run_app("dpo-train", "config", lambda cfg: None, ["trainer.learning_rate=abc"]) == 2
    assert "could not be converted to Float" in capsys.readouterr().err
    assert run_app("dpo-train", "config", lambda cfg: None, ["trainer.args.seed=1"]) == 2
    told = capsys.readouterr().err
    assert "added as +trainer.args.seed=1" in told and "object_type" not in told
    assert run_app("dpo-train", "config", lambda cfg: None, ["-m", "seed=0,1", "--cfg", "job"]) == 2
    assert capsys.readouterr().err == (
        "dpo-train: two things are asked at once; got --cfg --multirun; expected one of them; "
        "hint: without --multirun one job's configuration is shown\n"
    )
    RunWriter(tmp_path / "mine").finish()
    assert run_app("dpo-train", "config", lambda cfg: None, [f"{tmp_path}/mine"]) == 2
    assert capsys.readouterr().err == (
        f"dpo-train: override '{tmp_path}/mine' cannot be parsed; expected key=value; "
        f"hint: resume={tmp_path}/mine goes on with that run\n"
    )


def test_shell_completion_is_no_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app("dpo-train", "config", lambda cfg: None, ["-sc", "install=bash"]) == 0
    assert "-F hydra_bash_completion dpo-train" in capsys.readouterr().out
