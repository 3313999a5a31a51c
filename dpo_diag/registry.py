"""Where the kinds of things that can be added live: a name, and the file that registers it.

A registry holds one kind (checks, metrics, losses, log formats, report sections, gate rules, trackers). The package's
own entries are the modules of one folder; others come from plugins: modules that an installed distribution names in the
entry-point group `dpo_diag.plugins`, or that the environment variable DPO_DIAG_PLUGINS lists (separated by commas). A
plugin is imported at the first look into any registry, and registers by calling `add` or using the decorator.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from dpo_diag.errors import DiagError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

PLUGIN_GROUP = "dpo_diag.plugins"
PLUGIN_VARIABLE = "DPO_DIAG_PLUGINS"
_loaded_plugins: set[str] = set()


class Registry(Mapping[str, T], Generic[T]):
    """name -> entry, in the order of registration; read as a mapping.

    Args:
        kind: what an entry is, singular, for errors: "check".
        package: the package whose modules register the built-in entries; they are imported at the first look.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register an entry under a name that no other has.

        Raises:
            DiagError: the name is taken.
        """
        if name in self._entries and self._entries[name] is not entry:
            raise DiagError(f"two {self.kind}s have one name", got=name, hint="rename the one that you add")
        self._entries[name] = entry
        return entry

    def load(self) -> None:
        """Import the built-in modules and the plugins, once."""
        package, self._package = self._package, None
        if package is not None:
            module = importlib.import_module(package)
            for info in sorted(pkgutil.iter_modules(module.__path__), key=lambda m: m.name):
                importlib.import_module(f"{package}.{info.name}")
        load_plugins()

    def __getitem__(self, name: str) -> T:
        self.load()
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries)) or "none is registered"
            raise DiagError(f"unknown {self.kind}", got=name, expected=f"one of {known}", usage=True) from None

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        self.load()
        return len(self._entries)


@cache  # every look into a registry asks, and the answer costs a reading of every installed distribution
def _installed_plugins() -> tuple[str, ...]:
    return tuple(point.module for point in entry_points(group=PLUGIN_GROUP))


def plugins() -> tuple[str, ...]:
    """The modules of all plugins, imported or not."""
    named = (name.strip() for name in os.environ.get(PLUGIN_VARIABLE, "").split(","))
    return (*_installed_plugins(), *(name for name in named if name))


def load_plugins() -> None:
    """Import every plugin that is not imported yet.

    Raises:
        DiagError: a plugin cannot be imported.
    """
    for module in plugins():
        if module in _loaded_plugins:
            continue
        # Marked first: a plugin may look into a registry while it is imported.
        _loaded_plugins.add(module)
        try:
            importlib.import_module(module)
        except ImportError as error:
            _loaded_plugins.discard(module)
            raise DiagError(
                "a plugin cannot be imported", where=module, got=error,
                hint=f"install it, or remove it from {PLUGIN_VARIABLE} or the entry points {PLUGIN_GROUP}",
            ) from error  # fmt: skip
