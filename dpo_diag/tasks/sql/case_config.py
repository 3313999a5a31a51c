"""All that determines the embedded case up to DPO, and which of it cannot work."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_diag.errors import DiagError


@dataclass(frozen=True)
class SqlCaseConfig:
    """All that determines the embedded case up to DPO. A DPO seed is none of it.

    Attributes:
        data_seed: which questions are drawn, in every set.
        sft_seed: initial weights and the order of SFT batches.
        sft_steps, sft_batch_size, sft_learning_rate: SFT sees steps x batch questions once; AdamW, cosine to 0.
        sft_warmup_steps, sft_adam_beta2: linear warm-up; AdamW's second decay.
        planted_error: share of the SFT answers with `>=` that say `>` instead (0 none, 1 all): a systematic mistake
            for DPO to correct.
        vocab_size, hidden_size, layers, heads, intermediate_size, initializer_range: tokenizer and model.
        n_pairs: how many pairs to collect.
        n_train_pairs: how many of them train; the rest are held out.
        n_questions: fresh questions answered first; more are asked, as many again, while pairs are missing.
        max_questions: where asking ends with an error.
    """

    data_seed: int = 0
    sft_seed: int = 0
    sft_steps: int = 220
    sft_batch_size: int = 32
    sft_learning_rate: float = 4e-3
    sft_warmup_steps: int = 10
    planted_error: float = 0.0
    sft_adam_beta2: float = 0.999
    vocab_size: int = 768
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 320
    initializer_range: float = 0.06
    n_pairs: int = 620
    n_train_pairs: int = 496
    n_questions: int = 2000
    max_questions: int = 8000

    def check(self) -> None:
        """Raise DiagError for a value that cannot work."""
        for name in ("sft_steps", "sft_batch_size", "layers", "heads", "n_questions"):
            if getattr(self, name) < 1:
                raise DiagError("the value must be at least 1", where=name, got=getattr(self, name))
        if self.sft_learning_rate <= 0:
            raise DiagError("the learning rate must be positive", where="sft_learning_rate", got=self.sft_learning_rate)
        if not 0 <= self.planted_error <= 1:
            raise DiagError("a share lies in [0, 1]", where="planted_error", got=self.planted_error)
        if self.vocab_size < 258:
            raise DiagError("a byte-level vocabulary needs 256 bytes and 2 special tokens", where="vocab_size",
                            got=self.vocab_size, expected=">= 258")  # fmt: skip
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise DiagError("hidden_size must be an even multiple of heads", where="hidden_size", got=self.hidden_size,
                            expected=f"a multiple of {2 * self.heads}")  # fmt: skip
        if not 0 < self.n_train_pairs < self.n_pairs:
            raise DiagError("training must leave some pairs held out", where="n_train_pairs", got=self.n_train_pairs,
                            expected=f"1 to {self.n_pairs - 1}")  # fmt: skip
