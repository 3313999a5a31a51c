"""DiagDPOTrainer: TRL's DPOTrainer that measures what its loss cannot show, and writes it down if asked to.

`from dpo_diag.training import DiagDPOTrainer as DPOTrainer` is the whole change to a script: same constructor, same
loss bit for bit, same metrics, and beside them the ones of `dpo_diag.training.aggregate.pair_metrics`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from trl import DPOTrainer

from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter
from dpo_diag.training import trl_adapter
from dpo_diag.training.aggregate import pair_metrics, pair_weights
from dpo_diag.training.head_probe import EXTRA_METRICS, HeadProbe
from dpo_diag.training.monitor import Monitor, decoded_texts
from dpo_diag.training.pair_ids import KEY, PairIdCollator, add_pair_ids, take_ids
from dpo_diag.training.run import Recording


class DiagDPOTrainer(Recording, DPOTrainer):
    """`trl.DPOTrainer` with exact per-pair measurements.

    Positional and keyword arguments are DPOTrainer's own. Additional, all by keyword:

    Args:
        recorder: a `dpo_diag.records.RunWriter`, or the path of a run folder (then it is opened when training starts,
            at the step of the checkpoint that is resumed, on every rank with its own number: prefer this). None
            measures and logs, but writes nothing.
        record_tokens: pairs of each evaluation set whose tokens are recorded (0 for none).
        extra_metrics: any of "top5" and "greedy_logp", read inside the fused LM head while the logits of a tile exist
            (see `head_probe.HeadProbe` for the price: about 2 % of a step for top5, 1 % for greedy_logp).
        evaluate_at_start: evaluate before the first step, where the policy still is the reference. None: where there
            is a recorder, an evaluation set and an `eval_strategy`. The random states are put back, so that losses
            are those of a run without it. (`args.eval_on_start=True` stays TRL's own and does the same.)
        stop_on: codes of live guards that end the run ("non_finite_loss", "non_finite_logp", "loss_spike").

    Logged live beside TRL's metrics, in training as they are and in evaluation behind the set's prefix (`eval_`,
    `eval_NAME_`): see `aggregate.pair_metrics`. `loss_residual` and `loss_exact` are absent for losses that couple the
    pairs of a batch (aot, aot_unpaired): there is no per-pair value to compare with.
    """

    def __init__(
        self,
        *args: Any,
        recorder: RunWriter | str | os.PathLike[str] | None = None,
        record_tokens: int = 256,
        extra_metrics: Iterable[str] = (),
        evaluate_at_start: bool | None = None,
        stop_on: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        extra = tuple(extra_metrics)
        unknown = [name for name in extra if name not in EXTRA_METRICS]
        if unknown:
            raise DiagError("unknown extra metric", got=unknown, expected=f"some of {EXTRA_METRICS}")
        self._pair_sources: list[Any] = []
        super().__init__(*args, **kwargs)
        self._probe = HeadProbe("top5" in extra, "greedy_logp" in extra) if extra else None
        self._spec = trl_adapter.loss_spec(self)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self._byte_table = torch.from_numpy(token_bytes(self._tokenizer, vocabulary)).to(self.accelerator.device)
        self.monitor = Monitor(
            lambda pairs, residual: pair_metrics(pairs, self._spec, residual),
            pair_weights,
            self._spec,
            world_size=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            record_tokens=record_tokens,
            moving_reference=bool(self.args.sync_ref_model),
            guards=self.make_guards(stop_on),
        )
        for dataset in self._pair_sources:
            self.monitor.texts.add(dataset)
        self.start_recording(recorder, evaluate_at_start)

    # ---- ids: dataset, collator, batch ----

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        dataset = add_pair_ids(dataset, args.dataset_num_proc, dataset_name)
        monitor = getattr(self, "monitor", None)
        if monitor is not None:
            monitor.texts.add(dataset)
        else:
            self._pair_sources.append(dataset)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if KEY not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, KEY]

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        own = self.data_collator
        self.data_collator = PairIdCollator(own)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = own

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != KEY})

    # ---- the loss ----

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        inputs, ids = take_ids(inputs)
        monitor = self.monitor
        if not (monitor.evaluating or self.is_in_train):
            return super()._compute_loss(model, inputs, return_outputs)
        tap = trl_adapter.Tap(self, model, self._probe)
        with tap.open():
            result = super()._compute_loss(tap, inputs, return_outputs)
        loss = result[0] if return_outputs else result
        batch = trl_adapter.read_pairs(self, tap, inputs, ids, loss, self._byte_table, self._spec, monitor.wants_tokens)
        if batch is None:
            monitor.warn_once("no output", "TRL's fused forward was not used: nothing is measured")
        else:
            monitor.observe(batch, self.state.global_step + (0 if monitor.evaluating else 1))
        return result

    # ---- what run.json says ----

    def describe(self) -> dict[str, Any]:
        """Fields of run.json that this trainer knows."""
        loss = self._spec.to_dict()
        if self._spec.not_additive:
            loss["residual"] = f"not applicable: {self._spec.not_additive}"
        return {
            **super().describe(),
            "loss": loss,
            "reference": trl_adapter.reference_of(self),
            "logps_reduction": "sum",
        }

    def decode_pair(self) -> Any:
        """How to write down a pair whose texts are not in a data set."""
        return decoded_texts(self._tokenizer)
