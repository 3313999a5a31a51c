"""DiagSFTTrainer: TRL's SFTTrainer that shows response and prompt apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from trl import SFTTrainer

from dpo_diag.config import EXTRA_METRICS
from dpo_diag.config_sft import LOSS_ON
from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.data.trained_tokens import NOTHING
from dpo_diag.data.unigram import Unigram, trained_unigram
from dpo_diag.errors import DiagError
from dpo_diag.records.metric_table import Value
from dpo_diag.records.splits import Role
from dpo_diag.text import plural
from dpo_diag.training.carrying import taken_out
from dpo_diag.training.head_probe import HeadProbe, head_scores_every_position
from dpo_diag.training.kl_probe import as_reference, measures_kl, supervised_reason
from dpo_diag.training.left_out import say_left_out
from dpo_diag.training.monitor import Monitor
from dpo_diag.training.run import Recorded, Recording
from dpo_diag.training.sequences import RESPONSE, ROW, MarkResponse, add_rows, attach_marks, has_prompt
from dpo_diag.training.sft_adapter import Added, PromptTap, added_loss, as_logged, read_sequences
from dpo_diag.training.sft_terms import SftTerms, smoothed_floor
from dpo_diag.training.shared_proof import compare
from dpo_diag.training.turns import UNTRAINED, TokenisedTurns, is_talk

logger = get_logger(__name__)


class DiagSFTTrainer(Recording, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with the cross-entropy of the response and of the prompt measured apart.

    Positional and keyword arguments are SFTTrainer's own. Additional, all by keyword:

    Args:
        recorder: as DiagDPOTrainer's. SFT has no pairs, so pairs/ and texts/ stay empty.
        record_tokens: responses of each evaluation set whose tokens are recorded (0 for none), by content as
            DiagDPOTrainer's; `pair_id` is the hash of the row's tokens, `side` response.
        prompt_metrics: score the prompt's tokens too. None: without Triton, where TRL's head projects them anyway (see
            `sft_adapter.PromptTap` for the price elsewhere).
        tiled_head: on a CPU the head works in tiles, on the positions that are scored: the same loss and gradient but
            for rounding, no longer bit for bit.
        loss_on: what the loss counts: "assistant", every turn of the assistant (see `turns`), of a text its completion;
            "last", the last turn alone; "all", the whole sequence. None: what TRL's arguments say, which is "last" for
            a prompt and a completion, and "all" for a conversation.
        label_smoothing: epsilon of the target (1 - epsilon + epsilon / V, and epsilon / V elsewhere), from TRL's own
            forward; TRL's `label_smoothing_factor` gives the same loss by a second forward with full logits, and is
            measured likewise. The loss then is the smoothed one; cross-entropies and perplexities stay plain.
        auxiliary: name of a term (`sft_terms.AUXILIARY`) -> its weight, which is added to the loss and logged apart;
            `infonce_temperature` beside them.
        ref_model: what the policy is compared with, a causal LM; None for the policy without its adapter.
        kl: evaluations also measure the KL from it at each token that is scored, both ways, for one forward of it (see
            `kl_probe`); a line says where that cannot be.
        extra_metrics: as DiagDPOTrainer's.
        evaluate_at_start, stop_on, thresholds, facts: as DiagDPOTrainer's.
        eval_roles: as DiagDPOTrainer's; without it the set's name decides.

    Logged live beside TRL's metrics: see `measure.batch_metrics`. `loss_on_prompt` is 0 with the right mask; above 0
    the loss trains on what the user wrote.
    """

    carried = (ROW, RESPONSE)
    attach = staticmethod(attach_marks)

    def __init__(
        self,
        *args: Any,
        recorder: Recorded = None,
        record_tokens: int = 256,
        prompt_metrics: bool | None = None,
        tiled_head: bool = False,
        loss_on: str | None = None,
        label_smoothing: float = 0.0,
        auxiliary: Mapping[str, float] | None = None,
        infonce_temperature: float = 0.05,
        ref_model: Any = None,
        kl: bool = False,
        extra_metrics: Iterable[str] = (),
        evaluate_at_start: bool | None = None,
        stop_on: Iterable[str] = (),
        thresholds: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        eval_roles: Mapping[str, Role] | None = None,
        **kwargs: Any,
    ) -> None:
        if loss_on not in (None, *LOSS_ON):
            raise DiagError("unknown loss_on", got=loss_on, expected=f"one of {', '.join(LOSS_ON)}, or None")
        extra = tuple(extra_metrics)
        if unknown := [name for name in extra if name not in EXTRA_METRICS]:
            raise DiagError("unknown extra metric", got=unknown, expected=f"some of {EXTRA_METRICS}")
        self._loss_on = loss_on
        self._terms = SftTerms.checked(
            label_smoothing, auxiliary, infonce_temperature, kwargs.get("args", args[1] if len(args) > 1 else None)
        )
        super().__init__(*args, **kwargs)
        self._terms.check_trainer(self)
        free = head_scores_every_position(self.accelerator.device)
        # InfoNCE compares states of the prompt, which the head then must see.
        self._whole = "infonce" in self._terms.weights or (free if prompt_metrics is None else prompt_metrics)
        self._probe = HeadProbe("top5" in extra, "greedy_logp" in extra) if extra else None
        self.ref_model = None if ref_model is None else as_reference(self, ref_model)
        self._kl = measures_kl(self, kl, supervised_reason(self, ref_model))
        vocabulary = self.accelerator.unwrap_model(self.model).get_output_embeddings().weight.shape[0]
        self._vocabulary = int(vocabulary)
        self._byte_table = torch.from_numpy(token_bytes(self._tokenizer, vocabulary)).to(self.accelerator.device)
        config = getattr(self.model, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False) or self.accelerator.parallelism_config is not None:
            self._whole = False  # the head's rows are not the batch's tokens
            tiled_head, self._probe = False, None
        # None: not compared yet.
        self._tiled: bool | None = None if tiled_head and self.accelerator.device.type == "cpu" else False
        self.monitor = Monitor(
            world_size=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            record_tokens=record_tokens,
            guards=self.make_guards(stop_on, thresholds),
        )
        self._unigrams: dict[str, Unigram | None] = {}
        self.start_recording(recorder, evaluate_at_start, facts, eval_roles)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        numbered = self._tokenised(add_rows(dataset, args.dataset_num_proc), args, formatting_func, dataset_name)
        dataset = super()._prepare_dataset(numbered, processing_class, args, packing, formatting_func, dataset_name)
        if not packing:
            say_left_out(numbered, dataset, dataset_name, NOTHING)
        first = next(iter(dataset), None)
        if "infonce" in self._terms.weights and first is not None and not has_prompt(first):
            logger.warning(f"{dataset_name} dataset: InfoNCE adds nothing, its texts have no prompt to compare")
        if first is None or RESPONSE in first or "labels" not in first or not has_prompt(first):
            return dataset
        mark = MarkResponse(
            tokenizer=self._tokenizer,
            chat_template=self.chat_template,
            max_length=args.max_length,
            keep_end=args.truncation_mode == "keep_end",
            by_labels=bool(args.assistant_only_loss or ("prompt" in first and self.completion_only_loss)),
        )
        return dataset.map(mark)

    def _tokenised(self, dataset: Any, args: Any, formatting_func: Any, name: str) -> Any:
        """With labels where `loss_on` and not TRL says what they are: of conversations; of completions TRL's are it."""
        first = next(iter(dataset), None)
        if self._loss_on is None or first is None or "input_ids" in first or formatting_func is not None:
            return dataset
        if is_talk(first):
            mark = TokenisedTurns(self._tokenizer, self.chat_template, self._loss_on)
            dataset = dataset.map(mark, **({"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}))
            if isinstance(dataset, Dataset) and (n := sum(dataset[UNTRAINED])):
                logger.warning(f"{name} dataset: {plural(n, 'turn')} of the assistant with weight 0, not trained")
            return dataset.remove_columns(UNTRAINED)
        if "completion" in first:
            self.completion_only_loss = self._loss_on != "all"
        elif self._loss_on != "all":
            raise DiagError(
                "the rows are texts without turns", where=f"{name} dataset", got=f"loss_on={self._loss_on}",
                expected="messages, or prompt and completion",
                hint="train on the whole sequence, or give the answer a column of its own",
            )  # fmt: skip
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, unchanged; measured where a training or evaluation loop runs."""
        inputs, (rows, response) = taken_out(inputs, self.carried)
        if not self.measures and not self._terms.adds:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._tiled is None:
            self._compare_heads(inputs, response, num_items_in_batch)
        tap = self._tap(model, self._probe if self.measures else None)
        result = super().compute_loss(tap, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        added: Added | None = None
        if self._terms.adds:
            added = added_loss(self, tap, response, num_items_in_batch)
            loss = loss + added.tokens + added.rows
        if self.measures:
            batch = read_sequences(
                self, tap, inputs, rows, response, loss, num_items_in_batch, added=added,
                byte_table=self._byte_table, with_tokens=self.monitor.wants_tokens,
            )  # fmt: skip
            self.observe(batch)
        return (loss, *outputs) if return_outputs else loss

    def _tap(self, model: Any, probe: HeadProbe | None = None) -> PromptTap:
        kl = self._kl and self.monitor.evaluating
        return PromptTap(
            model, self._whole, bool(self._tiled), self._terms, probe, self._vocabulary, kl, self.ref_model
        )

    def _compare_heads(self, inputs: Any, response: Any, num_items: Any) -> None:
        """Once: whether the head in tiles gives the first batch's loss and gradient."""

        def loss_of(model: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            tap = self._tap(model)
            loss = super(DiagSFTTrainer, self).compute_loss(tap, inputs, False, num_items)
            if tap.output is None or tap.output.log_probs is None:
                raise RuntimeError("TRL's fused forward did not run")
            if self._terms.adds:
                added = added_loss(self, tap, response, num_items)
                loss = loss + added.tokens + added.rows
            return loss, (tap.output.log_probs.detach().double().sum(1),)

        @contextmanager
        def otherwise() -> Iterator[None]:
            self._tiled = True
            yield

        policy = self.accelerator.unwrap_model(self.model)
        found = compare(self, [policy], loss_of, otherwise, "head", "same")
        self._tiled = found.way == "head"
        if not self._tiled:
            logger.warning(f"the head in tiles is not used: {found.reason}")
        if self.run_writer is not None:
            self.run_writer.update(training={"shared_prefix": found})

    def begin_run(self) -> None:
        """As any trainer's; the training set's scale stands beside its first row."""
        super().begin_run()
        if not any("baseline/uniform" in row for row in self.state.log_history):  # of a resumed one, its log has it
            self.monitor.scale["train"] = self._scale(self.train_dataset)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, with the scale of the set."""
        self.monitor.scale["eval"] = self._scale(dataloader.dataset)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _scale(self, dataset: Any) -> dict[str, Value]:
        """What a loss of this set is measured against, as baseline/NAME; see `records.metric_kinds.supervised`."""
        found = {"baseline/uniform": Value(math.log(self._vocabulary), math.nan)}
        if self._terms.label_smoothing:
            floor = smoothed_floor(self._terms.label_smoothing, self._vocabulary)
            found["baseline/floor"] = Value(floor, math.nan)
        own, trained = self._unigram(dataset), self._unigram(self.train_dataset)
        if own is None or trained is None or not own.total or not trained.total:
            return found
        n = float(own.total)
        ce = trained.entropy if own is trained else trained.cross_entropy(own)
        return found | {"baseline/unigram": Value(ce, n), "baseline/unseen": Value(trained.unseen(own), n)}

    def _unigram(self, dataset: Any) -> Unigram | None:
        if not isinstance(dataset, Dataset):
            return None
        # Each evaluation makes its set anew, without the columns that are not used; the fingerprint says which it is.
        key = str(dataset._fingerprint)
        if key not in self._unigrams:
            self._unigrams[key] = trained_unigram(dataset, self._vocabulary)
        return self._unigrams[key]

    def describe(self) -> dict[str, Any]:
        """Fields of run.json that this trainer knows."""
        known = super().describe()
        reason = "SFT: a negative log-likelihood, no preference loss"
        training = known["training"] | {"loss_on": self._loss_on, "loss_terms": as_logged(self._terms)}
        return {**known, "training": training, "loss_reason": reason, "method": "sft"}
