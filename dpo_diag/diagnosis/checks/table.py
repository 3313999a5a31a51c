"""The table of checks: one literal row each, in the order of their codes."""

from __future__ import annotations

from dpo_diag.diagnosis.checks import aggregation, integrity, learning, likelihood, loss_course, reference, tasks
from dpo_diag.diagnosis.checks.base import Check

RAZIN = "Razin et al. 2024, arXiv 2410.08847 (likelihood displacement)"
REN = "Ren and Sutherland 2024, arXiv 2407.10490 (squeezing effect)"
H2O = "h2oai/h2o-llmstudio issue 594"
LINT = "what log linters look for; here without the false alarm on a fast fall"

CHECKS: tuple[Check, ...] = (
    Check(
        "DVG001", "likelihood displacement",
        "pairs of a fixed set at two steps; or rewards/chosen, logps/chosen or ce/chosen", "warning",
        likelihood.displacement, (RAZIN, H2O, "Pal et al. 2024, arXiv 2402.13228 (DPOP)"),
        ("look at what the model now writes before you call it harm (dpo-diag outputs)",
         "add an SFT term (loss_type=['sigmoid','sft']), raise beta or lower the learning rate",
         "drop pairs whose chosen and rejected are nearly the same (high ln-CHES)"),
    ),
    Check(
        "DVG002", "rejected collapse", "pairs at two steps; or rewards/rejected or logps/rejected", "warning",
        likelihood.rejected_collapse, ("3D-properties, arXiv 2406.07327",),
        ("stop earlier or raise beta: the loss gains nothing below a reward of -5",
         "use a loss that bounds the rejected side (ipo, apo_zero)"),
    ),
    Check(
        "DVG003", "the sign depends on the aggregator",
        "per-pair sums with token or byte counts at two steps; or two logged perplexities", "warning",
        aggregation.aggregator, (H2O,),
        ("report ppl_token and ppl_seq_geomean beside ppl_seq_mean, and say which one you compare",),
    ),
    Check(
        "DVG004", "a few hard pairs dominate", "per-pair sums with token counts at two steps", "info",
        aggregation.few_pairs, (H2O,),
        ("read those pairs: wrong labels, foreign text and cut answers look like this",
         "judge by ppl_seq_geomean or by the median pair"),
    ),
    Check(
        "DVG005", "length explains it", "per-pair sums with token counts at two steps", "info",
        aggregation.length, ("Park et al. 2024, arXiv 2403.19159 (length in DPO)", "LD-DPO, arXiv 2409.06411"),
        ("normalise by length (sigmoid_norm, ipo, ld_alpha) or balance the lengths of both sides",),
    ),
    Check(
        "DVG006", "truncation or end-token artefact",
        "n_truncated of the pairs, token records at two steps, or finish reasons of outputs", "warning",
        integrity.truncation, (),
        ("raise max_length, or drop pairs that do not fit",
         "check that the chat template ends both sides with the end token"),
    ),
    Check(
        "DVG007", "reference mismatch", "step 0 of pairs or of an evaluation, or the first training rows", "error",
        reference.mismatch, ("huggingface/trl tests: the first sigmoid loss is 0.6931",),
        ("check that the reference is the very model that training starts from (dtype, adapter, dropout included)",
         "pass a frozen copy as ref_model, or precompute its log-probs"),
    ),
    Check(
        "DVG008", "dead run", "grad_norm, or a fixed set at two steps", "error", learning.dead, (),
        ("check requires_grad of the adapter's weights, the optimizer's parameter list, the gradient scaler and "
         "gradient checkpointing with a frozen embedding",),
    ),
    Check(
        "DVG009", "not learning", "loss, margins or accuracy at enough steps", "warning",
        learning.not_learning, (),
        ("raise the learning rate; check that warm-up is over and that the batch is not a handful of pairs",
         "check that chosen and rejected are not swapped in part of the data"),
    ),
    Check(
        "DVG010", "saturated at the loss's floor", "loss", "warning", learning.saturated,
        ("RLHFlow/OPA-DPO issue 10: loss to 0 and no change in outputs",),
        ("stop earlier; more epochs on won pairs only push probabilities further",
         "use harder pairs, a higher beta, or label smoothing"),
    ),
    Check(
        "DVG011", "NaN or infinity behind a finite loss", "history or pairs", "warning", integrity.non_finite,
        ("transformers filters NaN out of the logged loss",),
        ("find the pairs (empty or fully masked responses, float16 overflow) and use bf16 or float32",),
    ),
    Check(
        "DVG012", "squeezing",
        "entropy or greedy log-prob beside both sides' log-probs at two steps", "warning", likelihood.squeezing,
        (REN, "arXiv 2410.11677 (signs of over-optimisation)"),
        ("SFT on both chosen and rejected first, or add an SFT term",
         "compare greedy answers of both checkpoints: short, repeated ones are this"),
    ),
    Check(
        "DVG013", "memorisation",
        "scores on training-like and on paraphrased or held-out questions at two steps", "warning",
        tasks.memorisation, (),
        ("stop earlier, add varied prompts, and choose checkpoints by the held-out score",),
    ),
    Check(
        "DVG014", "contradictory, repeated or leaked pairs", "texts of the pairs, or pairs of two splits", "warning",
        integrity.duplicates, (),
        ("drop or settle contradictory pairs, deduplicate, split by prompt before training",),
    ),
    Check(
        "DVG015", "perplexities of different tokenizers compared",
        "tokenizer of the run, or token counts of the same responses", "error", aggregation.tokenizers, (),
        ("compare bits per byte instead",),
    ),
    Check(
        "DVG016", "loss spikes", "loss of the training batches at ten steps", "info", loss_course.spikes, (LINT,),
        ("look at the batch of that step; clip gradients, lower the learning rate or lengthen warm-up",),
    ),
    Check(
        "DVG017", "accuracy that ignores the reference", "pairs with reference sums, or rewards beside an accuracy",
        "warning", reference.accuracy, (),
        ("read rewards/accuracies (rewards, reference included) for DPO",),
    ),
    Check(
        "DVG018", "likelihood fell, the task did not get worse", "chosen's log-prob and a task score at two steps",
        "info", tasks.benign, (RAZIN, "filtered data restored behaviour though chosen still fell, ibid."),
        ("nothing, by these scores; keep watching the outputs",),
    ),
    Check(
        "DVG019", "the best checkpoint is not the last", "a task score at three steps with its n", "warning",
        tasks.best_not_last, (),
        ("take the best checkpoint, and confirm it on fresh questions",),
    ),
    Check(
        "DVG020", "divergence of the loss", "loss of the training batches", "error", loss_course.diverged, (LINT,),
        ("lower the learning rate, clip gradients, check the data at the step where it turns",),
    ),
    Check(
        "DVG021", "steps that run backwards", "history with epochs, or the importer's report", "warning",
        integrity.backtrack, (LINT,),
        ("split the log into its runs, or import only the last one",),
    ),
    Check(
        "DVG022", "overfit onset", "the held-out loss at three steps", "warning", loss_course.overfit, (LINT,),
        ("stop at the step of the minimum; fewer epochs",),
    ),
    Check(
        "DVG023", "stagnation", "twenty rows of the training loss", "info", learning.stagnation, (LINT,),
        ("the run could have stopped earlier, or its learning rate is wrong for what is left to learn",),
    ),
    Check(
        "DVG024", "lines of the log that could not be read", "an imported log", "info", integrity.unparsed, (LINT,),
        ("look at the skipped lines: dpo-diag import lists each with the reason",),
    ),
    Check(
        "DVG025", "a task score fell", "a task score or checked answers at two steps", "error", tasks.score_fell,
        (RAZIN,),
        ("go back to the checkpoint before the fall; then DVG001's remedies",),
    ),
)  # fmt: skip
