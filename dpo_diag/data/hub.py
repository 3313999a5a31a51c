"""Preference pairs of a `datasets` id or folder, and what the library raises about them in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dpo_diag.data.pairs import PairSet, collect
from dpo_diag.errors import DiagError
from dpo_diag.models.hub import explain, hub_offline_if_unreachable, hub_reachable, looks_local
from dpo_diag.rows.form import How
from dpo_diag.rows.pair import shorten


def read_hub(
    name: str, split: str = "train", *, revision: str | None = None, config: str | None = None, how: How | None = None
) -> PairSet:
    """Preference pairs of a `datasets` id, or of a local folder (`save_to_disk`, or data files).

    Args:
        config: the configuration, where the data set has several.
        how: what is known of the rows.

    Raises:
        DiagError: no such data set, configuration or split, or the hub cannot be reached.
    """
    dataset = _load(name, split, revision, config)
    source = {"name": name, "config": config, "split": split, "revision": revision}
    return collect(enumerate(dataset, start=1), {k: v for k, v in source.items() if v is not None}, how)


def _load(name: str, split: str, revision: str | None, config: str | None) -> Any:
    import datasets

    folder = Path(name).expanduser()
    try:
        if not looks_local(name):
            before = datasets.config.HF_HUB_OFFLINE
            try:
                with hub_offline_if_unreachable(name):
                    # The library keeps a switch of its own; without it, it retries before it looks in its cache.
                    datasets.config.HF_HUB_OFFLINE = before or not hub_reachable()
                    return datasets.load_dataset(name, config, split=split, revision=revision)
            finally:
                datasets.config.HF_HUB_OFFLINE = before
        if not folder.is_dir():
            hint = "use data=jsonl for a single file" if folder.exists() else "check data.name"
            raise DiagError("no such dataset folder", where=folder, hint=hint)
        if not ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
            return datasets.load_dataset(str(folder), config, split=split)
        if config is not None:
            raise DiagError("a saved data set has no configurations", where="data.config", got=config, expected="null")
        loaded = datasets.load_from_disk(str(folder))
        if not isinstance(loaded, datasets.DatasetDict):
            return loaded
        if split not in loaded:
            raise DiagError("no such split", where=folder, got=split, expected=f"one of {', '.join(loaded)}")
        return loaded[split]
    except DiagError:
        raise
    except Exception as error:  # the library raises many unrelated types for a wrong name
        if (names := _configurations(str(error))) and config not in names:
            raise DiagError(
                "no such configuration" if config else "the data set has several configurations", where=name,
                got=config, expected=f"one of {', '.join(names)}", hint=f"data.config={names[0]}",
            ) from error  # fmt: skip
        if "split" in str(error).lower() and split in str(error):
            raise DiagError("no such split", where=name, got=split, expected=shorten(str(error), 160)) from error
        raise explain(name, "data set", error, option="data.name") from error


def _configurations(message: str) -> list[str]:
    """The configurations that the library's error lists; [] where it is about something else."""
    listed = re.search(r"(?:pick one among the available configs|Available):\s*\[([^\[\]]*)\]", message)
    return re.findall(r"'([^']*)'", listed.group(1)) if listed else []
