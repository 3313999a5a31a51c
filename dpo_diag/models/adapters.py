"""LoRA and QLoRA through peft: what the trainer takes, checked before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.config import PeftConfig
from dpo_diag.errors import DiagError
from dpo_diag.models.hub import PICKLES

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel


def check_adapter(config: PeftConfig, device: str) -> None:
    """Cheap checks, before any long work.

    Raises:
        DiagError: an unknown kind, a rank or dropout out of range, QLoRA without bitsandbytes or without a GPU.
    """
    if config.kind not in ("none", "lora", "qlora"):
        raise DiagError("unknown adapter", where="peft.kind", got=config.kind, expected="none, lora or qlora")
    if config.kind == "none":
        return
    if config.r < 1 or config.alpha <= 0:
        raise DiagError(
            "LoRA needs a rank and an alpha above 0", where="peft", got=f"r={config.r}, alpha={config.alpha}"
        )
    if not 0 <= config.dropout < 1:
        raise DiagError("a dropout lies in [0, 1)", where="peft.dropout", got=config.dropout)
    if config.kind == "qlora":
        if config.bits not in (4, 8):
            raise DiagError("QLoRA weights have 4 or 8 bits", where="peft.bits", got=config.bits)
        if not device.startswith("cuda"):
            raise DiagError("QLoRA needs a GPU", where="peft.kind", got=f"device {device}", hint="use peft=lora")
        if util.find_spec("bitsandbytes") is None:
            raise DiagError(
                "QLoRA needs bitsandbytes", where="peft.kind", hint="pip install bitsandbytes, or peft=lora"
            )


def lora_config(config: PeftConfig, model: PreTrainedModel | None = None) -> LoraConfig | None:
    """peft's configuration for TRL's `peft_config`; None for full fine-tuning.

    Given the model, named target modules are looked for in it first.

    Raises:
        DiagError: a target module that the model does not have.
    """
    if config.kind == "none":
        return None
    from peft import LoraConfig

    targets: Any = config.target_modules
    if not isinstance(targets, str):
        targets = [str(target) for target in targets]
    if model is not None and not isinstance(targets, str):
        names = [name for name, _ in model.named_modules()]
        leaves = sorted(
            {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
        )
        for target in targets:
            if not any(name == target or name.endswith("." + target) for name in names):
                raise DiagError(
                    "no such module in the model", where="peft.target_modules", got=target,
                    expected=f"all-linear, or some of {', '.join(leaves)}",
                )  # fmt: skip
    return LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def quantization_config(config: PeftConfig, dtype: Any) -> BitsAndBytesConfig | None:
    """How to load the base weights: NF4 with double quantisation at 4 bits (Dettmers et al. 2023), or 8 bits."""
    if config.kind != "qlora":
        return None
    from transformers import BitsAndBytesConfig

    if config.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_weights(path: str, *, allow_pickle: bool = False) -> None:
    """Refuse an adapter folder without safetensors: a pickle can run code when it is opened. `allow_pickle` takes an
    adapter_model.bin.

    Raises:
        DiagError: no adapter_model.safetensors in it. A hub id passes.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
        if allow_pickle and (folder / "adapter_model.bin").is_file():
            return
        pickled = any(folder.glob("adapter_model.[bp]*"))
        raise DiagError(
            "no adapter_model.safetensors", where=folder, got="pickled weights only" if pickled else "no weights",
            hint=PICKLES if pickled else "save the adapter again",
        )  # fmt: skip


def load_adapter(model: Any, path: str) -> Any:
    """A model with an adapter on it.

    Raises:
        DiagError: the adapter is damaged, or does not fit on the model.
    """
    from peft import PeftModel

    with _opening(path):
        return PeftModel.from_pretrained(model, path)


@contextmanager
def _opening(path: str) -> Iterator[None]:
    """Turn what reading an adapter's files raises into a DiagError."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    unreadable = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, SafetensorError, UnpicklingError)
    try:
        yield
    except unreadable as error:
        got = " ".join(str(error).split())[:200]
        raise DiagError("the adapter cannot be loaded", where=path, got=got, hint="name a whole one") from error


def swap_adapter(model: Any, path: str) -> bool:
    """Give a PEFT model the weights of another adapter of the same configuration; False, and nothing done, where its
    weights are not all there is to it (biases of the base, other tensors than the model's)."""
    from peft import PeftType, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = model.peft_config[model.active_adapter]
    if config.peft_type != PeftType.LORA or config.bias != "none":
        return False
    with _opening(path):
        weights = load_peft_weights(path, device=str(model.device))
    own = get_peft_model_state_dict(model)
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in own.items()}:
        return False
    set_peft_model_state_dict(model, weights)
    return True


@contextmanager
def reference_adapter(model: Any) -> Iterator[None]:
    """A PEFT model as its own reference: with the adapter called "ref" that TRL keeps of a start that had one already,
    else with its adapters off. Which weights take gradients is as before on leaving: PEFT forgets those that were
    frozen by hand."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = model.active_adapter
    try:
        if "ref" in model.peft_config:
            model.set_adapter("ref")
            try:
                yield
            finally:
                model.set_adapter(active)
        else:
            with model.disable_adapter():
                yield
    finally:
        for parameter, gradient in trained:
            parameter.requires_grad_(gradient)


def split_weights(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights of the model under its adapters, by their names there; the active adapter's own weights).

    The first are what the model had before PEFT was put around it; the second are empty for a model without adapter.
    """
    if not hasattr(model, "peft_config"):
        return model.state_dict(), {}
    from peft import get_peft_model_state_dict

    base = {}
    for name, tensor in model.state_dict().items():
        plain = name.removeprefix("base_model.model.")
        saved_apart = ".modules_to_save." in plain or any(part.startswith(_ADAPTERS) for part in plain.split("."))
        if not saved_apart and not plain.startswith("prompt_encoder."):
            base[plain.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return base, get_peft_model_state_dict(model, adapter_name=model.active_adapter)


_ADAPTERS = ("lora_", "ia3_", "vera_", "boft_", "oft_", "hada_", "lokr_", "adalora_", "vblora_", "randlora_", "miss_")
"""Before the names of what PEFT adds beside a layer."""


def only_adds(path: str, config: Mapping[str, Any]) -> bool:
    """Whether a saved adapter leaves the weights of the model under it as they are, so that it can be taken off again:
    not where weights of the model itself were trained and saved (`modules_to_save`, biases, embeddings: peft's `unload`
    keeps those), nor where starting the adapter changes them (PiSSA, OLoRA, ...) or doubles layers."""
    from safetensors import safe_open

    file = Path(path) / "adapter_model.safetensors"
    starts_apart = config.get("init_lora_weights", True) in (True, False, "gaussian", "orthogonal")
    if not file.is_file() or not starts_apart or config.get("layer_replication"):
        return False
    with safe_open(file, "pt") as tensors:
        return all(".lora_" in name for name in tensors.keys())  # noqa: SIM118 - not iterable
