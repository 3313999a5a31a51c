"""What is not the same in two runs: what was set, the data, the versions; and the first step at which they part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpo_diag.diagnosis.pair_rows import PairRows
from dpo_diag.diagnosis.split_rows import SplitRows
from dpo_diag.outputs.answers import POLICY, alike
from dpo_diag.records import Run
from dpo_diag.records.checksums import read_yaml
from dpo_diag.records.metric_table import TRAINERS_OWN, metric_of
from dpo_diag.records.secrets import without_secrets
from dpo_diag.records.typed_json import to_document
from dpo_diag.text import arrow, records

AREAS = ("config", "data", "model", "versions")
"""Where a difference lies: what was set; which pairs and prompts; policy, tokenizer and reference; what computed it."""
_AREA_OF = {
    "data": "data", "splits": "data", "prompts": "data", "task": "data", "source": "data",
    "model": "model", "tokenizer": "model", "other_tokenizers": "model", "reference": "model",
    "packages": "versions", "git_commit": "versions", "schema_version": "versions", "trainer": "versions",
    "loss": "config", "loss_reason": "config", "loss_names": "config", "beta": "config", "seed": "config",
    "method": "config", "training": "config", "decoding": "config", "kind": "config", "reference_free": "config",
}  # fmt: skip
"""Fields of run.json -> area; the others say when and where a run was made, or how it went."""
_OF_THE_RECORD = (
    "name", "output_root", "resume", "explain", "report", "tracking.", "task.cache", "checks.", "trainer.save_",
)  # fmt: skip
"""Keys of the composed configuration that decide where and how a run is shown, not what it is."""
_MEASURED_ANEW = ("sft.", "seconds", "max_loss_diff", "max_grad_diff", "difference", "mean_gap", "largest_gap")
"""Parts of run.json's names that hold a measurement of this machine and day."""
_BOOKKEEPING = ("learning_rate", "loss_residual")
ROUNDING = 1e-6
"""Two logged numbers of one training differ by less (relative, or absolute below 1): float32 and its sums."""
ROUNDING_NATS = 1e-3
"""The same for a response's log-prob sum, with 1e-5 of the sum: other batches and kernels, no other weights."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        area: one of `AREAS`.
        name: dotted, as the configuration or run.json has it.
        a, b: the two values; None where a run does not say.
    """

    area: str
    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Parting:
    """The first step at which one kind of record differs in two runs.

    Attributes:
        what: "history" | "batches" | "pairs" | "outputs"; `split`: of which split ("" for all).
        step: the first step at which they differ; None where they are alike at all of the `shared` steps.
        last_alike: the last step before it at which they were alike; None where there is none.
        shared: steps that both record.
        n_different, n: things that differ at that step, and that both record there (0 where they never differ).
        text: in words, what differs most there.
    """

    what: str
    split: str
    step: int | None
    last_alike: int | None
    shared: int
    n_different: int = 0
    n: int = 0
    text: str = ""


def differences(a: Run, b: Run) -> list[Difference]:
    """What was set, the data, the model and the versions, where they are not the same, in the order of `AREAS`.

    Of two runs with a composed configuration (`.hydra/config.yaml`) that is compared; else what run.json says of loss
    and training. Secrets are left out.
    """
    configs = _config(a), _config(b)
    composed = all(configs)
    infos = [dict(_of_info(run, without_config=composed)) for run in (a, b)]
    found = list(_unequal("config", *configs)) if composed else []
    found += [
        Difference(_AREA_OF[name.partition(".")[0]], name, infos[0].get(name), infos[1].get(name))
        for name in dict.fromkeys([*infos[0], *infos[1]])
        if infos[0].get(name) != infos[1].get(name)
    ]
    return sorted(found, key=lambda d: AREAS.index(d.area))


def _unequal(area: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name) and not name.startswith(_OF_THE_RECORD):
            yield Difference(area, name, a.get(name), b.get(name))


def _config(run: Run) -> dict[str, Any]:
    """The composed configuration with dotted keys; {} where there is none."""
    file = run.path / ".hydra" / "config.yaml"
    if not file.is_file():
        return {}
    document = read_yaml(file)
    return dict(_flat(without_secrets(document))) if isinstance(document, dict) else {}


def _of_info(run: Run, without_config: bool) -> Iterator[tuple[str, Any]]:
    """What run.json says with dotted names; without what a composed configuration says better."""
    for name, value in _flat(to_document(run.info)):
        area = _AREA_OF.get(name.partition(".")[0])
        told = without_config and area == "config" and name not in ("training.world_size", "training.shared_prefix.way")
        if area is None or told or any(part in name for part in _MEASURED_ANEW):
            continue
        if area == "data" and name.endswith(("path", "role_from", "details")):
            continue
        yield name, value


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


# --- where they part --------------------------------------------------------------------------------------------------


def partings(a: PairRows, b: PairRows) -> list[Parting]:
    """Per kind of record that both runs hold, the first step at which it differs; see `Parting`.

    Logged numbers part beyond ROUNDING, log-prob sums beyond ROUNDING_NATS; training batches where they hold other
    pairs; answers where a text differs.
    """
    return [*_history(a.run, b.run), *_batches(a, b), *_pairs(a, b), *_outputs(a.run, b.run)]


def _parting(what: str, split: str, steps: list[int], alike_at: Mapping[int, bool], **told: Any) -> Parting:
    step = next((s for s in steps if not alike_at[s]), None)
    before = [s for s in steps if step is None or s < step]
    return Parting(what, split, step, before[-1] if before else None, len(steps), **(told if step is not None else {}))


def _history(a: Run, b: Run) -> Iterator[Parting]:
    key = ["split", "step", "name"]
    sides = [of.history.dropna(subset=["value"])[[*key, "value"]].drop_duplicates(key, keep="last") for of in (a, b)]
    rows = sides[0].merge(sides[1], on=key, suffixes=("_a", "_b"))
    names = rows["name"].astype(str)
    measured = [metric_of(n) is not None and not n.startswith((TRAINERS_OWN, *_BOOKKEEPING)) for n in names]
    rows = rows.loc[np.asarray(measured, dtype=bool)]
    gap = (rows["value_b"] - rows["value_a"]).abs()
    size = np.maximum(1.0, np.maximum(rows["value_a"].abs(), rows["value_b"].abs()))
    rows = rows.assign(gap=gap, apart=gap > ROUNDING * size)
    for split, of_split in rows.groupby("split", observed=True, sort=True):
        steps = sorted({int(s) for s in of_split["step"]})
        apart = of_split.groupby("step", observed=True)["apart"].any()
        first = next((s for s in steps if apart[s]), None)
        there = of_split.loc[(of_split["step"] == first) & of_split["apart"]].sort_values("gap", ascending=False)
        told = "; ".join(f"{r['name']} {arrow(r['value_a'], r['value_b'])}" for r in records(there.head(3)))
        n = int((of_split["step"] == first).sum())
        alike_at = {s: not bool(apart[s]) for s in steps}
        yield _parting("history", str(split), steps, alike_at, n_different=len(there), n=n, text=told)


def _batches(a: PairRows, b: PairRows) -> Iterator[Parting]:
    """Training batches hold the same pairs where data, order and batch size are the same."""
    for split in [s for s in a.steps if s in b.steps and a.run.role(s) == b.run.role(s) == "train"]:
        steps = sorted(set(a.steps[split]) & set(b.steps[split]))
        held = {s: [_ids(of.splits[split], s) for of in (a, b)] for s in steps}
        alike_at = {s: one == two for s, (one, two) in held.items()}
        first = next((s for s in steps if not alike_at[s]), None)
        one, two = held[first] if first is not None else (set(), set())
        text = f"{len(two - one)} of {len(two)} pairs are others"
        if steps:
            yield _parting("batches", split, steps, alike_at, n_different=len(two - one), n=len(two), text=text)


def _ids(rows: SplitRows, step: int) -> set[str]:
    return set(rows.ids.take(np.unique(rows.pair[rows.at(step)])))


def _pairs(a: PairRows, b: PairRows) -> Iterator[Parting]:
    for split in [s for s in a.steps if s in b.steps and "train" not in (a.run.role(s), b.run.role(s))]:
        steps = sorted(set(a.steps[split]) & set(b.steps[split]))
        alike_at: dict[int, bool] = {}
        told: dict[str, Any] = {}
        for step in steps:
            if told:
                alike_at[step] = False
                continue
            one, two = a.at(split, step), b.at(split, step)
            both = one.index.intersection(two.index)
            sums = [c for c in one.columns if c.endswith("_sum_logp") and "_ref" not in c and c in two]
            before, after = one.loc[both, sums].to_numpy(float), two.loc[both, sums].to_numpy(float)
            gap = np.abs(after - before)
            apart = gap > ROUNDING_NATS + 1e-5 * np.abs(before)
            alike_at[step] = not apart.any()
            if apart.any():
                most = float(np.nanmax(gap))
                told = {"n_different": int(apart.any(axis=1).sum()), "n": len(both),
                        "text": f"by up to {most:.3g} nats per response"}  # fmt: skip
        if steps:
            yield _parting("pairs", split, steps, alike_at, **told)


def _outputs(a: Run, b: Run) -> Iterator[Parting]:
    if not (a.has("outputs") and b.has("outputs")):
        return
    key = ["step", "prompt_id", "sample"]
    sides = []
    for run in (a, b):
        rows = alike(run.outputs)
        rows = rows.loc[rows["model"] == POLICY, [*key, "text"]].astype({"prompt_id": object, "text": object})
        sides.append(rows.drop_duplicates(key, keep="last"))
    rows = sides[0].merge(sides[1], on=key, suffixes=("_a", "_b"))
    if rows.empty:
        return
    rows["apart"] = rows["text_a"] != rows["text_b"]
    steps = sorted({int(s) for s in rows["step"]})
    apart, n = (rows.groupby("step", observed=True)["apart"].agg(how) for how in ("sum", "size"))
    first = next((s for s in steps if apart[s]), None)
    told = {} if first is None else {"n_different": int(apart[first]), "n": int(n[first]), "text": "other answers"}
    yield _parting("outputs", "", steps, {s: not apart[s] for s in steps}, **told)
