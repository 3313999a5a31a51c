"""What the checkpoints wrote for the same prompts, compared. Reads records only; no torch.

answers       rows of outputs/ by checkpoint (a model at a step); equal decoding or a refusal
words         text to words, sentences, scripts
diff          first difference, word-level diff
changed       changed since the previous checkpoint, the first, the reference, the SFT model
features      measures per answer: length, loops, form, stance, language; means per checkpoint
formats       JSON, SQL, code, lists by their text
stances       refusals and hedges from an editable phrase list
phrases       phrase inflation
references    exact match, F1, ROUGE-L, chrF, BLEU
gaming        length bias, format gaming, strategy collapse, sycophancy
behaviours    moved toward what is wanted or away, by tag; tag gaps
cross_scores  the old answers under the new model, and the reverse
compare       all of it, as frames or as one JSON document
terminal      answers for a terminal: side by side or stacked, differences marked
"""

from __future__ import annotations

from dpo_diag.outputs.compare import Comparison, compare, comparison

__all__ = ["Comparison", "compare", "comparison"]
