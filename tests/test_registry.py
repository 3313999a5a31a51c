"""The seam through which checks, metrics, losses and the rest are added."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dpo_diag import registry as registry_module
from dpo_diag.errors import DiagError
from dpo_diag.registry import PLUGIN_VARIABLE, Registry


def test_an_entry_is_found_by_its_name_and_no_name_is_taken_twice() -> None:
    registry: Registry[int] = Registry("check")
    registry.add("A", 1)
    registry.add("B", 2)
    assert dict(registry) == {"A": 1, "B": 2} and "A" in registry and "C" not in registry and len(registry) == 2
    with pytest.raises(DiagError, match="two checks have one name; got A"):
        registry.add("A", 3)
    with pytest.raises(DiagError, match="unknown check; got C; expected one of A, B") as error:
        registry["C"]
    assert error.value.usage


def test_the_modules_of_a_folder_register_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "toy_formats"
    folder.mkdir()
    (folder / "__init__.py").write_text("from dpo_diag.registry import Registry\nALL = Registry('format', __name__)\n")
    (folder / "one.py").write_text("from toy_formats import ALL\nALL.add('one', 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import toy_formats  # type: ignore[import-not-found]

    assert "toy_formats.one" not in sys.modules and toy_formats.ALL["one"] == 1


def test_a_plugin_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_plugin.py").write_text("import toy_home\ntoy_home.ALL.add('toy', 7)\n")
    (tmp_path / "toy_home.py").write_text("from dpo_diag.registry import Registry\nALL = Registry('rule')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(PLUGIN_VARIABLE, " toy_plugin ,")
    import toy_home  # type: ignore[import-not-found]

    assert toy_home.ALL["toy"] == 7
    monkeypatch.setenv(PLUGIN_VARIABLE, "no_such_plugin")
    with pytest.raises(DiagError, match="a plugin cannot be imported; in no_such_plugin"):
        list(toy_home.ALL)


def test_installed_distributions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of all checks looks some 200 times; each reading of the distributions' metadata takes milliseconds."""
    calls: list[str] = []

    def count(group: str) -> tuple[()]:
        calls.append(group)
        return ()

    monkeypatch.setattr(registry_module, "entry_points", count)
    registry_module._installed_plugins.cache_clear()
    registry: Registry[int] = Registry("check")
    registry.add("A", 1)
    assert [registry["A"] for _ in range(3)] == [1, 1, 1] and calls == ["dpo_diag.plugins"]
    registry_module._installed_plugins.cache_clear()
