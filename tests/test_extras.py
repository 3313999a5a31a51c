"""The command that brings what is missing: from where this package was installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_diag import extras


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    extras.installed_from.cache_clear()
    yield
    extras.installed_from.cache_clear()


def says(monkeypatch: pytest.MonkeyPatch, direct_url: dict[str, object] | None) -> None:
    """What pip wrote into direct_url.json (PEP 610); None for a package from an index."""
    text = None if direct_url is None else json.dumps(direct_url)
    monkeypatch.setattr(extras, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))


def test_a_checkout_is_named_as_long_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my clone"
    folder.mkdir()
    said = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    says(monkeypatch, said)
    assert extras.install_hint("trl") == 'pip install "dpo-diag[train]"'
    (folder / "pyproject.toml").touch()
    extras.installed_from.cache_clear()
    assert extras.install_hint("trl") == f'pip install "{folder}[train]"'
    assert extras.install_hint("torch.nn") == f'pip install "{folder}[train]"'


@pytest.mark.parametrize("said", [None, {"url": "https://host/dpo_diag-0.1.0-py3-none-any.whl", "archive_info": {}}])
def test_an_index_is_asked_by_name(said: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, said)
    assert extras.install_hint("gradio") == 'pip install "dpo-diag[review]"'
    assert extras.install_hint("bitsandbytes") == "pip install bitsandbytes"


def test_a_source_tree_that_was_never_installed_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", absent)
    assert extras.install_hint("gguf") == 'pip install "dpo-diag[gguf]"'
