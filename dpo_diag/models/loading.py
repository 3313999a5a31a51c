"""A causal LM from a hub id or folder: THE place where weights become a model; every doubt raised before long work."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.errors import DiagError
from dpo_diag.models.adapters import check_weights
from dpo_diag.models.hub import loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_device(device: str = "auto") -> str:
    """The device to use: "cpu", "cuda" (or "cuda:N") or "mps"; "auto" takes an accelerator where there is one.

    Raises:
        DiagError: an unknown name, or a GPU asked for and absent.
    """
    import torch

    kind = device.split(":")[0]
    if kind in ("gpu",):
        device = kind = "cuda"
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise DiagError("unknown device", where="model.device", got=device, expected="auto, cpu, cuda, cuda:N or mps")
    has_mps = torch.backends.mps.is_available()
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if kind == "cuda":
        if not torch.cuda.is_available():
            why = "this torch is built without CUDA" if torch.version.cuda is None else "no GPU is visible"
            raise DiagError(
                "a GPU was asked for and there is none", where=f"model.device={device}", got=why,
                hint="set model.device=auto or cpu, or install torch with CUDA on a machine with a GPU",
            )  # fmt: skip
        number = device.partition(":")[2]
        if number and (not number.isdigit() or int(number) >= torch.cuda.device_count()):
            raise DiagError(
                "no such GPU", where="model.device", got=device, expected=f"below {torch.cuda.device_count()}"
            )
    if kind == "mps" and not has_mps:
        raise DiagError(
            "a GPU was asked for and there is none", where="model.device=mps", hint="set model.device=auto or cpu"
        )
    return device


def choose_dtype(dtype: str, device: str) -> tuple[torch.dtype | str, list[str]]:
    """The dtype to load in, and a note. "auto" is the checkpoint's own on an accelerator and float32 on a CPU,
    where half precision is slower and rounds the log-probs that are compared here."""
    import torch

    if dtype not in DTYPES:
        raise DiagError("unknown dtype", where="model.dtype", got=dtype, expected=", ".join(DTYPES))
    if dtype == "auto":
        return ("auto", []) if device != "cpu" else (torch.float32, [])
    if dtype == "float16":
        return torch.float16, ["float16 weights overflow in full fine-tuning; bfloat16 has float32's range"]
    if dtype == "bfloat16" and device == "cpu":
        return torch.bfloat16, ["bfloat16 on a CPU is slow, and its log-probs carry 3 digits"]
    return getattr(torch, dtype), []


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    quantization: Any = None,
) -> PreTrainedModel:
    """A causal LM from a hub id or local folder, safetensors only unless `allow_pickle`; weights must fit exactly.

    Raises:
        DiagError: it cannot be loaded, is not a causal LM, or weights are missing (they would be random numbers).
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        options["quantization_config"] = quantization
    if not allow_pickle:
        options["use_safetensors"] = True
        if (Path(name) / "adapter_config.json").is_file():
            check_weights(name)  # transformers would fall back to adapter_model.bin
    with loading(name, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise DiagError(
            "the checkpoint lacks weights of the model, which would be random", where=name,
            got=f"{len(missing)} missing, e.g. {missing[0]}", hint="check that the checkpoint is whole and a causal LM",
        )  # fmt: skip
    mismatched = info.get("mismatched_keys") or ()
    if mismatched:
        raise DiagError(
            "weights of another shape than the config says", where=name, got=sorted(map(str, mismatched))[0]
        )
    return model


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as it is in memory, in eval mode, without gradients: the reference of full fine-tuning.

    TRL's `ref_model=None` would load the reference again from `config._name_or_path`, which is another model when the
    weights were changed in memory, and nothing at all for a model from scratch.
    """
    reference = copy.deepcopy(model)
    reference.eval()
    reference.requires_grad_(False)
    return reference


def n_embeddings(model: PreTrainedModel) -> int:
    """Rows of the input embedding: ids that the model takes."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def describe_model(model: PreTrainedModel, name: str, *, fingerprint: bool = True) -> dict[str, Any]:
    """For run.json's `model`: name, architecture, size, dtype, attention, fingerprint of the weights."""
    described = {
        "name": name,
        "architecture": type(model).__name__,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "revision": getattr(model.config, "_commit_hash", None),
    }
    if fingerprint:
        described["fingerprint"] = model_fingerprint(model)
    return {key: value for key, value in described.items() if value is not None}


def model_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over every weight's name, dtype, shape and bytes, by name; tied weights count once under each name.

    About a second for a gigabyte. The same checkpoint loaded in another dtype is another model, and has another one.
    """
    return weights_fingerprint(model.state_dict())


def weights_fingerprint(weights: Mapping[str, Any]) -> str:
    """The same for weights by their names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
