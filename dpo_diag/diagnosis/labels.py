"""What the labels of a verdict say, as a headline and where they stand behind another one."""

from __future__ import annotations

LABELS = {
    "implausible_numbers": "the log holds numbers that cannot be what their names say",
    "broken_numbers": "the records hold NaN or infinity",
    "summed_numbers": "the logged loss is a sum over micro-batches or processes, not their mean",
    "reference_mismatch": "the run did not start at its reference: its rewards and margins are no gains",
    "dead_run": "the run did not train",
    "supervised": "a supervised run: the checks judge preferences, so only what its loss did can be said",
    "one_row": "one row: nothing to compare",
    "loss_rose": "the loss rose beyond its noise",
    "likelihood_displacement": "the loss fell while the chosen answers became less likely",
    "late_divergence": "the loss kept falling after the chosen answers had begun to lose likelihood again",
    "loss_unknown": "the chosen answers became less likely; whether the loss fell is not recorded",
    "sign_depends_on_aggregator": "whether the chosen perplexity rose depends on how responses are averaged",
    "rejected_collapse": "the rejected answers lost far more probability than the loss needs",
    "score_fell": "a task score got worse",
    "saturated": "the loss is at its floor: these pairs have nothing left to teach",
    "length_explained": "the margin grew with the answers' length, hardly per token",
    "not_learning": "the run learned nothing that matters",
    "chosen_fell": "the chosen answers became less likely, and the loss did not fall",
    "best_not_last": "an earlier checkpoint scores better than the last one",
    "loss_unclear": "whether the run learned is open",
    "within_noise": "whether the chosen answers became less likely is inside the noise",
    "healthy": "the loss fell, and the chosen answers lost no likelihood that matters",
    "cannot_tell": "too little is recorded to call the run healthy",
    "unfinished": "not finished",
}


OF_THE_WHOLE = {
    "dead_run": "nothing has moved",
    "supervised": LABELS["supervised"],
    "one_row": LABELS["one_row"],
    "saturated": "the loss is at its floor",
    "not_learning": "nothing that matters was learned",
    "best_not_last": "an earlier checkpoint scores better than the last one that was measured",
    "loss_unclear": "whether the loss fell is inside its noise",
    "within_noise": LABELS["within_noise"],
    "healthy": LABELS["healthy"],
    "cannot_tell": LABELS["cannot_tell"],
}
"""Labels that speak of a whole work, of which half a one does not get them; and what is so far, where it is named."""

ALSO = {
    "likelihood_displacement": "the chosen answers became less likely",
    "late_divergence": "the chosen answers became less likely again after a rise",
    "saturated": "the loss ends at its floor",
    "chosen_fell": "the chosen answers became less likely",
}
"""Titles where they stand behind another headline, which says itself what the loss did."""

OF_CODE = {
    "DVG020": "the training loss rose beyond its noise",
    "DVG022": "the held-out loss rose beyond its noise",
}
"""Titles that say which loss: the table beside the headline may show the other one, and it fell."""
