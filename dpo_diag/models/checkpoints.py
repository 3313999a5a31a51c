"""Checkpoints: finding them from paths, globs and hub ids, and loading full models and adapters one after the other."""

from __future__ import annotations

import gc
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.documents import parse_json, read_json
from dpo_diag.errors import DiagError
from dpo_diag.models.adapters import check_weights, load_adapter, only_adds, swap_adapter
from dpo_diag.models.hub import check_name
from dpo_diag.models.loading import check_device, choose_dtype, load_model
from dpo_diag.models.smollm2 import smollm2_folder
from dpo_diag.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


POLICY, REFERENCE = "policy", "ref"
SMOLLM2 = "smollm2"
"""Names the model that `dpo-diag fetch smollm2` brings, wherever a checkpoint is named."""
_NOT_THE_TOKENIZER = frozenset({"trainer_state.json", "adapter_config.json", "generation_config.json"})
_NUMBERED = re.compile(r"(?:checkpoint|step|global_step)[-_]?(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A model to ask: where it is, what column it is in the records, and after how many optimizer steps."""

    path: str
    model: str = POLICY
    step: int = 0

    @property
    def is_adapter(self) -> bool:
        return (Path(self.path) / "adapter_config.json").is_file()

    @property
    def label(self) -> str:
        """`step 40`, or the name of another model."""
        return f"step {self.step}" if self.model == POLICY else self.model


def step_of(path: Path) -> int | None:
    """Optimizer steps of a checkpoint folder, from its trainer_state.json or its name; None if neither says."""
    state = path / "trainer_state.json"
    if state.is_file():
        try:
            return int(parse_json(state.read_text(encoding="utf-8"))["global_step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            pass
    match = _NUMBERED.search(path.name)
    return int(match.group(1)) if match else None


def find_checkpoints(names: Iterable[str | os.PathLike[str]]) -> list[Checkpoint]:
    """Checkpoints from paths, globs, hub ids and NAME=PATH entries, in step order, others (ref, sft, ...) first.

    A folder whose step is known (trainer_state.json, or a name like checkpoint-20) is the policy at that step.
    NAME=PATH gives a model of another column: `ref=...`, `sft=...`; `policy@40=PATH` sets a step by hand. A single
    folder or hub id without a step is the policy at step 0.

    Raises:
        DiagError: nothing found, or two checkpoints for the same place in the records.
    """
    places: dict[tuple[str, int], str] = {}
    for entry in map(str, names):
        label, _, rest = entry.partition("=")
        named = re.fullmatch(r"([A-Za-z_][\w.-]*)(?:@(\d+))?", label) if rest and not Path(entry).exists() else None
        for path in _folders(rest if named else entry):
            step = int(named.group(2)) if named and named.group(2) else step_of(Path(path))
            place = (named.group(1) if named else POLICY, step or 0)
            other = places.setdefault(place, path)
            if other != path:
                raise DiagError(
                    f"two checkpoints are {place[0]} at step {place[1]}", got=f"{other} and {path}",
                    hint="name one by hand, e.g. other=PATH or policy@40=PATH",
                )  # fmt: skip
    if not places:
        raise DiagError("no checkpoint found", where=", ".join(map(str, names)))
    checkpoints = [Checkpoint(path, model, step) for (model, step), path in places.items()]
    return sorted(checkpoints, key=lambda c: (c.model == POLICY, c.step, c.model))


def _folders(pattern: str) -> list[str]:
    """Model folders that a path or glob names; a hub id and "smollm2" as they are."""
    paths = sorted(glob.glob(pattern)) or ([pattern] if _may_be_hub(pattern) else [])
    if not paths:
        raise DiagError("no checkpoint found", where=pattern, hint="name folders, a glob over them or a hub id")
    folders = [path for path in paths if not Path(path).exists() or _is_model(Path(path))]
    # A glob over checkpoints/* also meets files beside them; a single name was meant.
    if not folders and len(paths) == 1:
        raise DiagError(
            "not a model folder", where=pattern, expected="config.json or adapter_config.json",
            hint="name the checkpoint folders, e.g. runs/x/checkpoints/checkpoint-*",
        )  # fmt: skip
    return folders


def _may_be_hub(name: str) -> bool:
    return name == SMOLLM2 or bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "runs/")))


def _is_model(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


@dataclass
class Loader:
    """Loads checkpoints; what they share is loaded once: the base of adapters, a tokenizer with the same files.

    Adapters of one kind on one base are swapped weight by weight, without building the model anew.

    Args:
        device: auto, cpu, cuda, cuda:N, mps.
        dtype: auto (float32 on a CPU), float32, bfloat16, float16.
        tokenizer: a tokenizer's folder or id; None for each checkpoint's own.
        trust_remote_code, allow_pickle, attn_implementation: as for `load_model`; pickled adapters are meant too.
    """

    device: str = "auto"
    dtype: str = "auto"
    tokenizer: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    allow_pickle: bool = False
    _shared: _Shared | None = None
    _tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)

    def _plain(self, name: str) -> PreTrainedModel:
        device = check_device(self.device)
        model = load_model(
            str(smollm2_folder()) if name == SMOLLM2 else check_name(name),
            dtype=choose_dtype(self.dtype, device)[0],
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )
        model.to(device)  # type: ignore[arg-type]
        model.eval()
        return model

    def tokenizer_of(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """The tokenizer of a checkpoint: the one set by hand, its own, or (an adapter without one) its base's."""
        names = [self.tokenizer or checkpoint.path]
        if checkpoint.is_adapter and not self.tokenizer:
            names.append(adapter_base(checkpoint))
        own = next((n for n in names if not Path(n).is_dir() or _has_tokenizer(Path(n))), names[-1])
        folder = str(smollm2_folder()) if own == SMOLLM2 else own
        key = _content(Path(folder)) if Path(folder).is_dir() else folder
        if key not in self._tokenizers:
            self._tokenizers[key] = load_tokenizer(folder, trust_remote_code=self.trust_remote_code)[0]
        return self._tokenizers[key]

    @contextmanager
    def open(
        self, checkpoint: Checkpoint, *, keep: bool = False
    ) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """(model in evaluation mode on its device, tokenizer); freed on leaving.

        Args:
            keep: a model that is the base of adapters which come next: it stays in memory for them.
        """
        tokenizer = self.tokenizer_of(checkpoint)
        model = self._with_adapter(checkpoint) if checkpoint.is_adapter else self._base_named(checkpoint.path)
        try:
            yield model, tokenizer
        finally:
            del model
            if keep or checkpoint.is_adapter:
                _free()
            else:
                self.drop()

    def drop(self) -> None:
        """Forget the model in memory."""
        self._shared = None
        _free()

    def _base_named(self, name: str) -> Any:
        """The model of that name without adapters: the one in memory, if it is that."""
        now, self._shared = self._shared, None
        if now is not None and now.name == name:
            if now.adapter is None:
                self._shared = now
            elif now.only_adds:
                self._shared = _Shared(name, now.model.unload())
        del now
        if self._shared is None:
            _free()
            self._shared = _Shared(name, self._plain(name))
        return self._shared.model

    def _with_adapter(self, checkpoint: Checkpoint) -> Any:
        base, config = adapter_base(checkpoint), adapter_config(checkpoint)
        check_weights(checkpoint.path, allow_pickle=self.allow_pickle)
        fits = self._shared is not None and (self._shared.name, self._shared.adapter) == (base, config)
        if self._shared is None or not fits or not swap_adapter(self._shared.model, checkpoint.path):
            model = self._base_named(base)
            self._shared = None  # no base any more, should the adapter not fit on it
            adapted = load_adapter(model, checkpoint.path)
            adapted.eval()
            self._shared = _Shared(base, adapted, config, only_adds(checkpoint.path, config))
        return self._shared.model


@dataclass(frozen=True)
class _Shared:
    """A model in memory under its name, the configuration of the adapter that is on it, and whether the model under
    that is as it was."""

    name: str
    model: Any
    adapter: dict[str, Any] | None = None
    only_adds: bool = True


def adapter_base(checkpoint: Checkpoint) -> str:
    """Folder or hub id of the model under an adapter, from adapter_config.json."""
    name = adapter_config(checkpoint).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        file = Path(checkpoint.path) / "adapter_config.json"
        raise DiagError("the adapter does not name its base model", where=file, got=repr(name))
    return name


def adapter_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """adapter_config.json of an adapter; raises DiagError for one that is no JSON object."""
    file = Path(checkpoint.path) / "adapter_config.json"
    return dict(read_json(file, "the adapter's configuration"))


def _has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def _content(folder: Path) -> str:
    """Hash of the files in a folder that decide what its tokenizer is."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt", ".model", ".jinja", ".py") and path.name not in _NOT_THE_TOKENIZER:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
