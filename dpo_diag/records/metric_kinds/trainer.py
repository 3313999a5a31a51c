"""Numbers that only a trainer or a task has: optimisation, token accuracy, scores of answers, other losses' terms."""

from __future__ import annotations

from dpo_diag.records.metric_table import METRICS, Better, Metric

_ROWS: tuple[tuple[str, str, str, Better, str], ...] = (
    ("grad_norm", "gradient norm", "norm", "neither", "gradient norm before clipping"),
    ("learning_rate", "learning rate", "rate", "neither", "learning rate of the first parameter group"),
    ("mean_token_accuracy", "token accuracy", "share", "higher", "share of targets that are the first choice"),
    ("num_tokens", "tokens seen", "tokens", "neither", "tokens seen so far; a counter"),
    ("aux_loss", "router loss", "nats", "lower", "router load-balancing loss of mixture-of-experts models"),
    ("loss_on_prompt", "share of the loss on prompts", "share", "lower",
     "share of the tokens in the loss that are not the response's"),
    ("log_odds_ratio", "log odds ratio", "nats", "higher", "ORPO: mean log odds ratio"),
    ("log_odds_chosen", "log odds of chosen", "nats", "neither", "ORPO: mean log odds of chosen"),
    ("log_odds_ratio_loss", "odds-ratio term", "nats", "lower", "ORPO: the odds-ratio term of the loss"),
    ("rewards/average", "mean reward", "nats", "neither", "mean of both rewards"),
    ("loss_running_mean", "running mean of the loss", "nats", "lower", "exponential running mean of loss"),
    ("accuracies_running_mean", "running reward accuracy", "share", "higher",
     "exponential running mean of rewards/accuracies"),
)  # fmt: skip
for _name, _label, _unit, _better, _description in _ROWS:
    METRICS.add(_name, Metric(_label, _unit, _better, _description))
METRICS.add("coefficient", Metric(
    "{name} (coefficient)", "factor", "neither", "coefficient/NAME: a coefficient of the loss that a schedule moves",
    sides=True, bounds=(None, None),
))  # fmt: skip
for _name, _of, _which in (("answers", "greedy answers", "greedy"), ("samples", "sampled answers", "seeded sampled")):
    METRICS.add(f"kl/{_name}", Metric(
        f"KL from the reference, {_of}", "nats/token", "neither",
        f"KL(policy || reference) over the whole vocabulary, mean over the tokens of the policy's own {_which} "
        "answers to the fixed prompts",
        bounds=(0.0, None),
    ))  # fmt: skip
METRICS.add("score", Metric(
    "{name}", "share", "higher", "score/NAME: mean over answers of a checker's verdict", sides=True,
    bounds=(None, None),
))  # fmt: skip
