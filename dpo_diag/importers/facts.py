"""What a source says about its own training: loss type, beta, label smoothing, the weight of an NLL term, the model.

From configuration files beside a log, from a tracker's config, from lines of a console log. Never from pickles
(training_args.bin runs code when it is opened).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json, parse_yaml
from dpo_diag.importers.numbers import number, step_number
from dpo_diag.importers.parsed import Facts
from dpo_diag.losses import NAMED, loss_name
from dpo_diag.records.text_files import Skipped, whole

# configuration key -> fact; the last part of a nested key decides (loss.beta, training.beta).
_KEYS: dict[str, str] = {
    "beta": "beta", "pref_beta": "beta", "rl_beta": "beta", "dpo_beta": "beta",
    "loss_type": "loss", "pref_loss": "loss", "dpo_loss_type": "loss", "loss_function": "loss",
    "label_smoothing": "label_smoothing", "dpo_label_smoothing": "label_smoothing",
    "reference_free": "reference_free",
    "rpo_alpha": "nll_weight", "pref_ftx": "nll_weight", "nll_loss_coef": "nll_weight",
    "f_divergence_type": "f_divergence_type",
    "logging_steps": "logging_steps", "max_steps": "total_steps", "num_train_epochs": "total_epochs",
}  # fmt: skip
_MODEL_KEYS = ("base_model_name_or_path", "model_name_or_path", "model_id_or_path", "base_model", "llm_backbone")
_LORA_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "task_type")
_METHOD_KEYS = ("rlhf_type", "rl", "stage")
"""ms-swift's, Axolotl's and LLaMA-Factory's word for the training; it may be one that is no preference training."""
CONFIG_FILES = (
    "adapter_config.json", "args.json", "training_args.yaml", "training_args.json", "cfg.yaml", "config.yaml",
    "axolotl_config.yaml", "config.json", "README.md", "dpo_config.json", "wandb-metadata.json",
)  # fmt: skip

MAX_CONFIGURATION = 16 << 20
"""Bytes; a larger file of such a name is something else."""

_TEXT_PATTERNS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("beta", re.compile(rb"(?<![\w_.])(?:dpo_|pref_|rl_)?[Bb]eta['\"]?\s*[:=]\s*['\"]?(\d[\d.eE+-]*)")),
    ("loss", re.compile(rb"(?<![\w_])-{0,2}rlhf_type['\"]?(?:\s*+[:=]| )\s*+['\"]?(orpo|simpo|cpo|kto)\b")),
    ("loss", re.compile(rb"(?<![\w_])(?:loss_type|pref_loss)['\"]?\s*[:=]\s*\[?['\"]?([a-z_]+)")),
    ("reference_free", re.compile(rb"(?<![\w_])-{0,2}reference_free['\"]?(?:\s*+[:=]| )\s*+['\"]?([Tt]rue)\b")),
    ("label_smoothing", re.compile(rb"(?<![\w_])label_smoothing['\"]?\s*[:=]\s*['\"]?(\d[\d.eE+-]*)")),
    ("nll_weight", re.compile(rb"(?<![\w_])(?:rpo_alpha|pref_ftx|nll_loss_coef)['\"]?\s*[:=]\s*['\"]?(\d[\d.eE+-]*)")),
    ("logging_steps", re.compile(rb"(?<![\w_])-{0,2}logging_steps['\"]?(?:\s*+[:=]| )\s*+['\"]?(\d+)")),
    ("total_steps", re.compile(rb"Total (?:optimization )?steps = ([\d,]+)")),
    ("loss", re.compile(rb"Starting ([A-Z]+) training\.\.\.")),
    ("total_steps", re.compile(rb"Starting [A-Z]+ training\.\.\., iters: (\d+)")),
    ("total_steps", re.compile(rb"TrainOutput\(global_step=(\d+)")),
    ("total_epochs", re.compile(rb"Num Epochs = ([\d.]+)")),
    ("total_examples", re.compile(rb"Num examples = ([\d,]+)\s*(?:\||\r?\n[^\r\n]*Num Epochs)")),
    ("total_batch", re.compile(rb"Total (?:train )?batch size(?: \([^()\r\n]*\))? = ([\d,]+)")),
)


def _typed(name: str, value: Any) -> Any:
    """The value in the fact's type, None where it does not fit."""
    if name == "loss":
        names = value if isinstance(value, (list, tuple)) else re.findall(r"[\w-]+", str(value or ""))
        losses = tuple(loss_name(v) for v in names if isinstance(v, str) and v)
        return losses if losses and len(losses) == len(names) and "" not in losses else None
    if name == "f_divergence_type":
        return str(value).split(".")[-1].lower() if isinstance(value, str) else None
    if name == "reference_free":
        return True if value is True or str(value).lower() == "true" else None
    if name in ("logging_steps", "total_steps", "total_examples", "total_batch"):
        step = step_number(value)
        return step if step else None
    known = number(value)
    if known is None or not known > 0:
        return 0.0 if name == "label_smoothing" and known == 0 else None
    return known


def flatten(document: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested document; lists are values. W&B's {"value": x} is x."""
    if isinstance(document, Mapping) and depth < 12:
        if set(document) <= {"value", "desc"} and "value" in document:
            yield from flatten(document["value"], prefix, depth + 1)
            return
        for key, value in document.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    else:
        yield prefix, document


def facts_from_mapping(document: Any, where: str) -> Facts:
    """Facts of a configuration document; keys decide, wherever they are nested."""
    facts = Facts()
    if not isinstance(document, Mapping):
        return facts
    is_h2o = any(key.endswith("llm_backbone") for key, _ in flatten(document))
    for key in _METHOD_KEYS:
        method = loss_name(document[key]) if isinstance(document.get(key), str) else ""
        # ORPO, SimPO, CPO and KTO are methods of their own: a loss_type beside them is one of their variants.
        if method in NAMED:
            facts.take("loss", (method,), f"{where}: {key}")
    for key, value in flatten(document):
        last = key.rsplit(".", 1)[-1]
        name = _KEYS.get(last)
        if name == "label_smoothing" and is_h2o:
            continue  # there it is of the supervised loss
        if name:
            facts.take(name, _typed(name, value), f"{where}: {key}")
        elif last in _MODEL_KEYS and isinstance(value, str) and value:
            facts.model.setdefault("name", value)
    for key in _METHOD_KEYS:
        method = str(document.get(key)).lower()
        if method in ("dpo", "ipo"):
            facts.take("loss", (loss_name(method),), f"{where}: {key}")
    if "peft_type" in document:
        lora = {k: document[k] for k in _LORA_KEYS if document.get(k) is not None}
        facts.model["adapter"] = {"type": document["peft_type"], **lora}
    return facts


def facts_from_file(path: Path, skipped: Skipped) -> Facts:
    """Facts of one configuration file or model card; a file that cannot be read is reported, not raised."""
    where = path.name
    if path.stat().st_size > MAX_CONFIGURATION:
        return Facts()
    raw = whole(path, skipped)
    if path.suffix == ".md":
        card = raw.decode("utf-8", "replace")
        base = re.search(r"^base_model:\s*(\S+)", card, re.MULTILINE)
        facts = Facts(model={"name": base.group(1)} if base else {})
        # TRL's card says so in a sentence of its own; "with DPO" leaves the loss type open.
        said = re.search(r"^(This model was trained with (ORPO|CPO|KTO|BCO)), a method", card, re.MULTILINE)
        if said:
            facts.take("loss", (loss_name(said.group(2)),), f"{where}: {said.group(1)}")
        return facts
    try:
        document = parse_json(raw) if path.suffix == ".json" else parse_yaml(raw.decode("utf-8", "replace"))
        skipped.add_repeated(document, file=where)
        if path.name == "config.json":  # the model's: its keys say nothing about the training
            name = document.get("_name_or_path") if isinstance(document, Mapping) else None
            return Facts(model={"name": name}) if isinstance(name, str) and name else Facts()
        return facts_from_mapping(document, where)
    except Exception as error:  # yaml raises its own family, and a hostile file can raise others
        known = isinstance(error, ValueError)
        why = str(error).splitlines()[0][:80] if known else type(error).__name__
        skipped.add(None, f"a configuration cannot be read: {why}", file=where)
    return Facts()


def versions_from_card(text: str) -> dict[str, str]:
    """Framework versions of a TRL model card (`- TRL: 0.12.0`)."""
    lines = re.findall(r"^- (TRL|Transformers|PEFT|Pytorch|Datasets):\s*([\w.+-]+)", text, re.MULTILINE | re.IGNORECASE)
    return {name.lower(): version for name, version in lines}


def facts_from_text(data: bytes, where: str) -> Facts:
    """Facts that a console log states in passing (`beta: 0.1`, `Total optimization steps = 283`)."""
    facts = Facts()
    for name, pattern in _TEXT_PATTERNS:
        match = pattern.search(data)
        if match is None:
            continue
        text = match.group(1).decode("ascii", "replace").replace(",", "").rstrip(".")
        line = data.count(b"\n", 0, match.start()) + 1
        shown = match.group(0).decode("ascii", "replace")
        facts.take(name, _typed(name, text), f"{where}: '{shown}' (line {line})")
    return facts
