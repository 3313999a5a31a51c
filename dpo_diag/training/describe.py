"""What a trainer knows about its run, for run.json; values only, no texts and no secrets."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from accelerate.utils import is_peft_model

from dpo_diag.models.loading import describe_model
from dpo_diag.models.tokenizers import describe_tokenizer
from dpo_diag.records.model_info import AdapterInfo
from dpo_diag.records.run_info import TrainingInfo


def describe_trainer(trainer: Any) -> dict[str, Any]:
    """Fields of run.json that every trainer knows: trainer, model, tokenizer, training."""
    arguments = describe_arguments(trainer.args)
    return {
        "trainer": type(trainer).__name__,
        "model": describe_policy(trainer.accelerator.unwrap_model(trainer.model)),
        "tokenizer": describe_tokenizer(trainer._tokenizer),
        "training": arguments | {"world_size": trainer.accelerator.num_processes},
    }


def describe_arguments(arguments: Any) -> dict[str, Any]:
    """Fields of run.json's `training` that a trainer's arguments have."""
    return _attributes(arguments, TrainingInfo)


def describe_policy(model: Any) -> dict[str, Any]:
    """For run.json's `model`: the policy with its adapter, not wrapped."""
    base = model.get_base_model() if is_peft_model(model) else model
    name = str(getattr(model.config, "_name_or_path", "") or type(base).__name__)
    # A fingerprint would read every weight; the job, which loads the model itself, has one.
    description = describe_model(base, name, fingerprint=False) | {
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if is_peft_model(model):
        config = model.peft_config.get("default") or next(iter(model.peft_config.values()))
        description["adapter"] = _attributes(config, AdapterInfo) | {"type": _plain(config.peft_type)}
    return description


def _attributes(source: Any, record: type) -> dict[str, Any]:
    """The fields of a record that an object has as attributes."""
    return {f.name: _plain(getattr(source, f.name)) for f in fields(record) if hasattr(source, f.name)}


def _plain(value: Any) -> Any:
    """An enum's value; a set in order."""
    value = getattr(value, "value", value)
    return sorted(value) if isinstance(value, (set, frozenset)) else value
