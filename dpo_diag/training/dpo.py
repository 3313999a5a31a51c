"""DiagDPOTrainer: TRL's DPOTrainer that measures what its loss cannot show, and writes it down if asked to.

`from dpo_diag.training import DiagDPOTrainer as DPOTrainer` is the whole change to a script: same constructor, same
gradients bit for bit, the metrics of `dpo_diag.training.measure.batch_metrics`, and TRL's: each the exact mean of the
set or of the training batches, whatever the batches and processes; where TRL's own mean is another, it is trl/NAME.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.logging import get_logger
from trl import DPOTrainer

from dpo_diag.config import EXTRA_METRICS
from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.data.trained_tokens import PROMPT_FILLS
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.metric_table import COEFFICIENT
from dpo_diag.records.model_info import PrefixInfo
from dpo_diag.records.run_info import SharedPrefixInfo
from dpo_diag.records.splits import Role
from dpo_diag.training import trl_adapter
from dpo_diag.training.carrying import taken_out
from dpo_diag.training.epsilon_dpo import RunningBeta, check_pair_beta, check_whole_heads, pair_betas
from dpo_diag.training.head_probe import HeadProbe
from dpo_diag.training.kept_head import KeptHead, kept_head
from dpo_diag.training.kl_probe import kl_of_kept, measures_kl, preference_reason
from dpo_diag.training.left_out import say_left_out
from dpo_diag.training.logits_sam import check_sam, trained_loss
from dpo_diag.training.monitor import Monitor
from dpo_diag.training.no_reference import as_precomputed, is_reference_free, without_reference
from dpo_diag.training.pair_ids import KEY, add_pair_ids, attach_ids
from dpo_diag.training.reference_proof import Handed, message, prove
from dpo_diag.training.run import Recorded, Recording
from dpo_diag.training.shared_prefix import SharedPrefix
from dpo_diag.training.stored_reference import StoredReference, checked_store
from dpo_diag.training.trl_batch import read_pairs

logger = get_logger(__name__)


class DiagDPOTrainer(Recording, DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` with exact per-pair measurements.

    Positional and keyword arguments are DPOTrainer's own; `loss_type` may also name losses that TRL does not have (of
    `dpo_diag.losses.LOSSES`), which are computed from TRL's forward. Where none of them looks at a reference (SimPO,
    ORPO, CPO), none is loaded or called, and rewards are beta times the log-probs. Additional, all by keyword:

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
        stop_on: codes of live guards that end the run ("non_finite_loss", "non_finite_logp", "loss_spike",
            "reference_mismatch").
        thresholds: overrides of the guards' thresholds (`guards.` in conf/checks/default.yaml), by name or nested.
        facts: further fields of run.json (`records.run_info.RunInfo`); a mapping for a record, such as `model`, adds
            to what the trainer says of it.

        eval_roles: evaluation set's name -> its role (`records.splits.Role`); "" for the only set. Without it the pairs
            say it: a set that was mostly trained on is a train_probe, any other held_out; for a stream the name does.
        reference_is_start: the reference must equal the policy before training, which is looked at on a few pairs of
            the first batch. None: it must where no `ref_model` is handed in, or one of the policy's own name.
        loss_coefficients: numbers of the losses that TRL does not have, by name (`LossSpec.coefficients`); their
            defaults stand in `dpo_diag.losses.LOSSES`.
        shared_prefix: "auto" computes the prompt that chosen and rejected share once, where loss and gradient of the
            first batch are those of TRL's padded one (see `shared_prefix`; then they are equal but for rounding, no
            longer bit for bit), and goes TRL's way elsewhere, saying why; "on" insists; "off" is TRL's way.
        logits_sam: rho of logits-SAM (see `logits_sam`); 0: none. It takes TRL's padded batches.
        reference_store: a folder where precomputed sums of the reference (`precompute_ref_log_probs=True`) are kept,
            and taken from where model, adapter, tokenizer, template and cut are the same (`inference.reference_store`).

        kl: evaluations also measure the KL from the reference at each response token, both ways (see `kl_probe` for the
            price: the product of both heads); a line says where that cannot be.

    Logged live, in training as they are and in evaluation behind the set's prefix (`eval_`, `eval_NAME_`): see
    `measure.batch_metrics`. `loss_residual` and `loss_exact` are absent for losses that couple the pairs of a batch
    (aot, aot_unpaired), whose `loss` stays TRL's: there is no per-pair value to compare with.
    """

    carried = (KEY,)
    attach = staticmethod(attach_ids)
    _precompute_model_hash: str | None

    def __init__(
        self,
        *args: Any,
        recorder: Recorded = None,
        record_tokens: int = 256,
        extra_metrics: Iterable[str] = (),
        evaluate_at_start: bool | None = None,
        stop_on: Iterable[str] = (),
        thresholds: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        eval_roles: Mapping[str, Role] | None = None,
        reference_is_start: bool | None = None,
        shared_prefix: str = "off",
        loss_coefficients: Mapping[str, float] | None = None,
        reference_store: str | os.PathLike[str] | None = None,
        logits_sam: float = 0.0,
        kl: bool = False,
        **kwargs: Any,
    ) -> None:
        extra = tuple(extra_metrics)
        unknown = [name for name in extra if name not in EXTRA_METRICS]
        if unknown:
            raise DiagError("unknown extra metric", got=unknown, expected=f"some of {EXTRA_METRICS}")
        self._pair_sources: list[Any] = []
        self._handed = Handed((args[1] if len(args) > 1 else kwargs.get("ref_model")) is not None, reference_is_start)
        self._proven = False
        self._given_ids: dict[str, GivenIds] = {}
        self._sam, shared_prefix = logits_sam, "off" if logits_sam and shared_prefix == "auto" else shared_prefix
        self._stored = StoredReference(self, reference_store, logger.warning)
        self._shared = SharedPrefix(self, shared_prefix, self._record_shared)
        self._shared_reference = SharedPrefix(self, shared_prefix, lambda info: None, reference=True)
        arguments = kwargs.get("args", args[2] if len(args) > 2 else None)
        checked_store(arguments, reference_store)
        check_pair_beta(arguments)
        self._reference_free = is_reference_free(arguments)
        if self._reference_free and self._handed.model:
            logger.warning("no term of this loss looks at a reference: ref_model is left out")
            kwargs.pop("ref_model", None)
            args = (*args[:1], *(None,) * len(args[1:2]), *args[2:])
        with self._no_reference(arguments, "precompute_ref_log_probs"):
            super().__init__(*args, **kwargs)  # which may compute the reference's log-probs
        if self._reference_free:
            self.precompute_ref_logps = False
        self._probe = HeadProbe("top5" in extra, "greedy_logp" in extra) if extra else None
        self._kl = measures_kl(self, kl, preference_reason(self, self._reference_free))
        self.loss_as_configured = trl_adapter.loss_spec(self, loss_coefficients or {})
        check_sam(logits_sam, self.loss_as_configured, shared_prefix)
        check_whole_heads(self, self.loss_as_configured)
        self._added = trl_adapter.added_types(self.loss_as_configured)
        self._moved: dict[str, float] = {}
        self._running_beta = RunningBeta()
        self._use(self.loss_as_configured)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self._byte_table = torch.from_numpy(token_bytes(self._tokenizer, vocabulary)).to(self.accelerator.device)
        self.monitor = Monitor(
            self._spec,
            world_size=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            record_tokens=record_tokens,
            moving_reference=bool(self.args.sync_ref_model),
            guards=self.make_guards(stop_on, thresholds),
            tokenizer=self._tokenizer,
            given_ids=self._given_ids,
            with_images=bool(self._is_vision_dataset),
        )
        for dataset in self._pair_sources:
            self.monitor.texts.add(dataset)
        self.start_recording(recorder, evaluate_at_start, facts, eval_roles)

    def _use(self, spec: LossSpec) -> None:
        """Train by this loss from now on; TRL computes the types that it knows, the others are added to its number."""
        self._spec, self.beta = spec, spec.beta
        terms = [(k, w) for k, w in zip(spec.types, spec.term_weights, strict=True) if k not in self._added]
        self.loss_types, self.loss_weights = [kind for kind, _ in terms], [weight for _, weight in terms]

    def set_coefficient(self, name: str, value: float) -> None:
        """Train and measure with another value of a coefficient (`LossSpec.value_of`) from now on; it is logged beside
        the loss. Call it between two log calls: a logged window is one loss."""
        self._moved[name] = value
        self._use(self._spec.with_value(name, value))
        self.monitor.spec = self._spec

    @property
    def base_beta(self) -> float:
        """The beta that pairs' own are made from; the loss's own, where they have none."""
        return self._spec.beta * self.monitor.window.beta_factor

    def after_update(self) -> None:
        """As Recording's; a running beta moves on."""
        super().after_update()
        window = self.monitor.window
        dropped = self.monitor.guards.skips > 0 or self.accelerator.optimizer_step_was_skipped
        window.beta_factor = self._running_beta.after_update(window.beta_factor, self.accelerator, dropped)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Recording's, with the coefficients that a schedule moves, and the beta that pairs' own are made from."""
        scope = self.monitor.scope(logs)
        if scope or "loss" in logs:
            now = {COEFFICIENT + name: value for name, value in self._moved.items()}
            if self._spec.has_pair_beta:
                now["base_beta"] = self.base_beta
            logs.update({f"{scope}_{name}" if scope else name: value for name, value in now.items()})
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        given = GivenIds()
        dataset = add_pair_ids(dataset, args.dataset_num_proc, dataset_name, given)
        if note := given.note():
            logger.warning(f"{dataset_name} dataset: {note}")
            self._given_ids[dataset_name] = given
        monitor = getattr(self, "monitor", None)
        if monitor is not None:
            monitor.texts.add(dataset)
        else:
            self._pair_sources.append(dataset)
        self._stored.add(dataset)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        say_left_out(dataset, prepared, dataset_name, PROMPT_FILLS)
        return prepared

    def _no_reference(self, holder: Any, name: str) -> AbstractContextManager[None]:
        """No reference inside this context, where the loss has none."""
        return as_precomputed(holder, name) if self._reference_free else nullcontext()

    def _trls_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """TRL's own, without a reference where the loss has none."""
        if not self._reference_free:
            return super()._compute_loss(model, inputs, return_outputs)
        with self._no_reference(self, "precompute_ref_logps"):
            result = super()._compute_loss(model, without_reference(inputs), return_outputs)
        for metrics in self._metrics.values():  # made with the zeros that stand in
            for name in [name for name in metrics if name.startswith("rewards/")]:
                del metrics[name]
        return result

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """As TRL's, or out of the reference store; into a cache of their own where prompts may be shared: "off" stays
        TRL's bit for bit."""
        if self._reference_free:
            return dataset
        own = self._precompute_model_hash
        if self._shared_reference.mode != "off":
            self._precompute_model_hash = f"{own} shared prefix"
        try:
            compute = super()._precompute_ref_logps
            return self._stored.precomputed(dataset, lambda: compute(dataset, name, batch_size))
        finally:
            self._precompute_model_hash = own

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """As TRL's, without the ids that ride in the batch, and with each prompt once where that is the same."""
        inputs, _ = taken_out(inputs, self.carried)
        self._shared_reference.decide(inputs, self._reference_sums)
        with self._shared_reference.loss(inputs, None):
            return super().compute_ref_log_probs(model, inputs)

    def _reference_sums(self, model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Their mean, and the reference's log-prob sum of each response."""
        sums = torch.cat(super().compute_ref_log_probs(model, inputs)).double()
        return sums.mean(), (sums,)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        inputs, (ids,) = taken_out(inputs, self.carried)
        self._prove_reference(model, inputs)
        self._shared.decide(inputs, self._loss_and_sums)
        with nullcontext() if return_outputs else self._shared.loss(inputs, self._probe):
            sam = self._sam > 0 and self.model.training and torch.is_grad_enabled()
            if not self.measures and not self._added and not sam:
                return self._trls_loss(model, inputs, return_outputs)
            kl = self._kl and self.monitor.evaluating
            tap = trl_adapter.Tap(self, model, self._probe if self.measures else None)
            result, kept = self._tapped(tap, inputs, return_outputs, sam or kl)
            if kl and kept is not None and tap.policy is not None and tap.policy.label_mask is not None:
                tap.kl = kl_of_kept(kept, tap.policy.label_mask)
        loss, *outputs = result if return_outputs else (result,)
        if self._added:
            loss = loss + trl_adapter.added_loss(self, tap, inputs, self._spec)
        if tap.pair_beta is not None and self.model.training and torch.is_grad_enabled():
            self._running_beta.see(self.base_beta, tap.pair_beta)
        trained = loss
        if sam:
            assert kept is not None
            trained = trained_loss(self, tap, kept, inputs, self._spec, loss, self._sam)
            rise = self.accelerator.gather((trained - loss).detach()).mean().item()
            self._metrics["train"]["sam/rise"].append(rise)
        if self.measures:
            tokens = self.monitor.wants_tokens
            self.observe(read_pairs(self, tap, inputs, ids, loss, self._byte_table, self._spec, tokens))
        return (trained, *outputs) if return_outputs else trained

    def _tapped(
        self, tap: trl_adapter.Tap, inputs: Any, return_outputs: bool = False, heads: bool = False
    ) -> tuple[Any, KeptHead | None]:
        """TRL's own result, and with `heads` its heads; what its forwards gave is in the tap."""
        own_beta = self._spec.has_pair_beta
        with tap.open(), kept_head() if heads or own_beta else nullcontext() as kept:
            result = self._trls_loss(tap, inputs, return_outputs)
        if own_beta and kept is not None and tap.policy is not None and tap.policy.label_mask is not None:
            epsilon = self._spec.value_of("epsilon")
            tap.pair_beta = pair_betas(kept, tap.policy.label_mask, self.base_beta, epsilon)
        return result, kept

    def _loss_and_sums(self, model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """What is trained on, and each response's log-prob sum under the policy and, where it ran, the reference."""
        tap = trl_adapter.Tap(self, model)
        loss, _ = self._tapped(tap, dict(inputs))
        if self._added:
            loss = loss + trl_adapter.added_loss(self, tap, dict(inputs), self._spec)
        return loss, trl_adapter.log_prob_sums(tap)

    def _record_shared(self, info: SharedPrefixInfo) -> None:
        if self.run_writer is not None:
            self.run_writer.update(training={"shared_prefix": info})

    @property
    def shared_prefix(self) -> SharedPrefixInfo | None:
        """How the shared prompt is computed; None before the first batch was seen."""
        return self._shared.info

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's."""
        with self._shared.step():
            return super().training_step(*args, **kwargs)

    def _prove_reference(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Once, before the first step: whether the policy equals its reference where it must."""
        if self._proven or self._reference_free or not self.measures or self.state.global_step > 0:
            return
        self._proven = True
        start = prove(self, model, inputs, self._spec, self._handed, self.monitor.guards.limits)
        if start is None:
            return
        if self.run_writer is not None:
            self.run_writer.update(reference={"start": start})
        if start.expected and not start.agrees:
            self.monitor.guards.reference(message(start), vars(start), main=self.is_world_process_zero())

    def describe(self) -> dict[str, Any]:
        """Fields of run.json that this trainer knows."""
        known = super().describe()
        shared = self._shared_reference.info
        reference = trl_adapter.reference_of(self, self._spec) | self._stored.facts
        if shared is not None and shared.way == "packed":
            reference["shared_prefix"] = PrefixInfo("packed", shared.max_loss_diff)
        elif shared is not None and self._shared_reference.mode != "off":
            reference["shared_prefix"] = PrefixInfo("plain", refused={"packed": str(shared.reason)})
        return {
            **known,
            "training": known["training"]
            | {"shared_prefix": self._shared.info}
            | ({"logits_sam": self._sam} if self._sam else {}),
            "loss": self.loss_as_configured,
            "reference": reference,
            "logps": "sum",
            "reference_free": self._reference_free,
        }
