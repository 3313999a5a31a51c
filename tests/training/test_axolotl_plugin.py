"""The plugin for axolotl, with stand-ins of the two classes that it takes from there; the real package is not installed
with this one (docs/trainers.md says with which version it ran)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dpo_diag.errors import DiagError

from .tiny import make_pairs


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # type: ignore[attr-defined]
    for name, module in (
        ("axolotl", ModuleType("axolotl")),
        ("axolotl.integrations", ModuleType("i")),
        (base.__name__, base),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "dpo_diag.training.axolotl_plugin", raising=False)
    from dpo_diag.training import axolotl_plugin

    yield axolotl_plugin
    sys.modules.pop("dpo_diag.training.axolotl_plugin", None)


def test_the_yamls_keys_are_the_callbacks(plugin: Any, tmp_path: Path) -> None:
    own = plugin.DiagPlugin()
    assert own.get_input_args() == "dpo_diag.training.axolotl_plugin.DiagArgs"
    settings = {"pairs": make_pairs(3), "out": str(tmp_path / "run"), "every": 5, "loss": {"beta": 0.2}}
    cfg = plugin.DiagArgs(dpo_diag=settings)
    (callback,) = own.add_callbacks_post_trainer(cfg, SimpleNamespace(processing_class="the tokenizer"))
    assert (callback.every, callback.tokenizer, callback.out) == (5, "the tokenizer", tmp_path / "run")
    assert callback.probe.loss.beta == 0.2
    with pytest.raises(DiagError, match="the plugin has no settings"):
        own.add_callbacks_post_trainer(plugin.DiagArgs(), SimpleNamespace(processing_class=None))
