"""What the run was: loss, data, learning rate, what was trained; then what live guards said, then all of run.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.records.run_info import RunInfo
from dpo_diag.records.secrets import without_secrets
from dpo_diag.report.section import SECTIONS, Context, Section
from dpo_diag.report.tables import table
from dpo_diag.report.text import clean
from dpo_diag.text import number, plural

TEMPLATE = """{{ ui.fields(facts) }}{% if alerts %}{{ ui.table(alerts) }}{% endif %}{{ ui.numbers(fields) }}"""
LAST = ("packages", "git_commit", "created", "ended", "schema_version")


def build(context: Context) -> Mapping[str, Any]:
    """The facts, and run.json flattened to dotted keys, folded; secrets stay out even if a writer let one in."""
    alerts = context.run.alerts
    meta = without_secrets(context.run.meta)
    ordered = {key: meta[key] for key in sorted(meta, key=lambda k: LAST.index(k) if k in LAST else -1)}
    fields = pd.DataFrame(_flat(ordered), columns=["field", "value"])
    return {
        "facts": told(context.run.info),
        "alerts": table(alerts[["step", "code", "message"]], "what the live guards said") if len(alerts) else None,
        "fields": table(fields, f"all {len(fields)} fields of run.json"),
    }


def told(info: RunInfo) -> list[tuple[str, str]]:
    """(name, value in words) of what a reader of a run looks for first: loss, data, learning rate, what was trained,
    from what, how; what is not known is left out."""
    rows = {
        "Loss": _loss(info),
        "Data": _data(info),
        "Learning rate": _rate(info),
        "Model" if info.kind == "scored" else "Trained": _trained(info),
        "Reference": _reference(info),
        "Batch": _batch(info),
        "Trainer": ", ".join(str(t) for t in (info.trainer or info.source.trainer, _version(info)) if t),
        "Read from": ", ".join(clean(name, 200) for name in info.source.files[:4]),
    }
    return [(name, value) for name, value in rows.items() if value]


def _loss(info: RunInfo) -> str:
    spec = info.loss
    if info.method == "sft":
        added = ", ".join(f"{name.replace('_', ' ')} {weight:g}" for name, weight in info.training.loss_terms.items())
        return ", ".join(part for part in ("negative log-likelihood", added) if part)
    if spec is None:
        like = f"not named; its means follow {info.loss_like}" if info.loss_like else ""
        names = " + ".join(info.loss_names) or like
        beta = f"β {info.beta:g}" if info.beta is not None else ""
        return ", ".join(part for part in (names, beta) if part)
    weighted = any(w != 1.0 for w in spec.weights)
    parts = [
        " + ".join(spec.types),
        f"β {spec.beta:g}",
        f"weights {', '.join(f'{w:g}' for w in spec.weights)}" if weighted else "",
        f"label smoothing {spec.label_smoothing:g}" if spec.label_smoothing else "",
        f"LD-DPO α {spec.ld_alpha:g}" if spec.ld_alpha is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _data(info: RunInfo) -> str:
    data = info.data
    what = "row" if info.method == "sft" else "pair"
    names = {f"{what}s": "n_pairs", "to train on": "n_train", "to evaluate": "n_eval"}
    counts = [(name, data.get(key)) for name, key in names.items()]
    source = data.get("path") or data.get("source")
    if isinstance(source, Mapping):
        source = source.get("path") or source.get("name") or source.get("task")
    sets = [f"{name} ({plural(of.n_pairs, what)})" for name, of in info.splits.items() if of.n_pairs]
    numbers = ", ".join(f"{number(n)} {of}" for of, n in counts if n is not None) or ", ".join(sets)
    return ": ".join(part for part in (clean(source, 200) if source else "", numbers) if part)


def _rate(info: RunInfo) -> str:
    t = info.training
    if t.learning_rate is None:
        return ""
    warm_up = f"{number(t.warmup_steps)} warm-up steps" if t.warmup_steps and t.warmup_steps >= 1 else ""
    return ", ".join(p for p in (f"{t.learning_rate:g}", t.lr_scheduler_type, warm_up, t.optim) if p)


def _trained(info: RunInfo) -> str:
    model = info.model
    n, of = model.n_trainable, model.n_parameters
    if model.adapter is not None:
        a = model.adapter
        how = ", ".join(
            part for part in (
                a.type or "adapter",
                f"r {a.r}" if a.r is not None else "",
                f"α {a.lora_alpha:g}" if a.lora_alpha is not None else "",
                f"dropout {a.lora_dropout:g}" if a.lora_dropout else "",
            ) if part
        )  # fmt: skip
    else:
        how = "all weights" if n is not None and n == of else ""
    size = f"{n:,} of {of:,} parameters" if n is not None and of is not None and n != of else ""
    size = size or (f"{of:,} parameters" if of is not None else "")
    return ", ".join(p for p in (clean(model.name, 200) if model.name else "", how, size, model.dtype) if p)


def _reference(info: RunInfo) -> str:
    reference = info.reference
    return ", ".join(clean(p, 200) for p in (reference.name, reference.kind) if p)


def _batch(info: RunInfo) -> str:
    t = info.training
    if t.per_device_train_batch_size is None:
        return ""
    parts = [
        f"{t.per_device_train_batch_size} {'rows' if info.method == 'sft' else 'pairs'}",
        f"× {t.gradient_accumulation_steps} accumulated" if (t.gradient_accumulation_steps or 1) > 1 else "",
        f"× {t.world_size} processes" if (t.world_size or 1) > 1 else "",
    ]
    epochs = f", {plural_epochs(t.num_train_epochs)}" if t.num_train_epochs and (t.max_steps or -1) < 0 else ""
    steps = f", {t.max_steps} steps" if t.max_steps and t.max_steps > 0 else ""
    return " ".join(part for part in parts if part) + (steps or epochs)


def plural_epochs(n: float) -> str:
    """ "1 epoch", "2.5 epochs"."""
    return f"{n:g} epoch{'' if n == 1 else 's'}"


def _version(info: RunInfo) -> str:
    if info.source.trainer_version:
        return info.source.trainer_version
    return " ".join(f"{name} {info.packages[name]}" for name in ("trl",) if name in info.packages)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of everything that is not empty."""
    if isinstance(value, dict) and value:
        parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
        return [row for part in parts for row in part]
    if isinstance(value, list):
        return [(prefix, clean(", ".join(map(str, value)), 400) or "none")]
    if value in (None, {}, ""):
        return []
    return [(prefix, clean(value, 400) if isinstance(value, str) else number(value, 6))]


SECTIONS.add("run", Section(
    title="The run", lead="", order=100, build=build, template=TEMPLATE,
))  # fmt: skip
