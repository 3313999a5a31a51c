"""How questions are worded: per intent, the templates of training and, disjoint, those of the paraphrased set.

Slots: {t} table, plural; {s} table, singular; {c} {d} columns; {n} a number column; {k} a category column;
{w} {w2} conditions in the style "price over 300"; {f} a function's word; {x} a superlative; {v} {lim} {hv} values;
{p} parent table, singular, {ap} with its article; {o} an order's words.
"""

from __future__ import annotations

TRAINING: dict[str, tuple[str, ...]] = {
    "list": (
        "List the {c} of all {t}.",
        "Show the {c} of every {s}.",
        "What is the {c} of each {s}?",
        "Give me the {c} for all {t}.",
        "I need the {c} of all the {t}.",
    ),
    "list_two": (
        "List the {c} and {d} of all {t}.",
        "Show the {c} and the {d} of every {s}.",
        "For each {s}, give me the {c} and {d}.",
        "What are the {c} and {d} of all {t}?",
    ),
    "distinct": (
        "List the different {k} values of the {t}.",
        "Which distinct {k} values do {t} have?",
        "Show each {k} of the {t} once.",
        "What are the unique {k} values among {t}?",
    ),
    "where": (
        "Show the {c} of {t} with {w}.",
        "List the {c} of all {t} with {w}.",
        "What is the {c} of {t} having {w}?",
        "Which {c} do {t} with {w} have?",
        "Find {t} with {w} and give me the {c}.",
        "Give me the {c} for every {s} with {w}.",
    ),
    "where_and": (
        "Show the {c} of {t} with {w} and {w2}.",
        "List the {c} of all {t} with both {w} and {w2}.",
        "What is the {c} of {t} having {w} and also {w2}?",
        "Give me the {c} for every {s} with {w} and {w2}.",
    ),
    "where_or": (
        "Show the {c} of {t} with {w} or {w2}.",
        "List the {c} of all {t} with either {w} or {w2}.",
        "What is the {c} of {t} having {w} or else {w2}?",
        "Give me the {c} for every {s} with {w} or {w2}.",
    ),
    "lookup": (
        "What is the {d} of the {s} with {w}?",
        "Show the {d} of the {s} with {w}.",
        "Give me the {d} for the {s} with {w}.",
        "I need the {d} of the {s} with {w}.",
    ),
    "count": (
        "How many {t} are there?",
        "Count all {t}.",
        "What is the number of {t}?",
    ),
    "count_where": (
        "How many {t} have {w}?",
        "Count the {t} with {w}.",
        "What is the number of {t} with {w}?",
        "How many {t} are there with {w}?",
    ),
    "count_distinct": (
        "How many different {k} values do {t} have?",
        "Count the distinct {k} values of {t}.",
        "What is the number of unique {k} values among {t}?",
    ),
    "aggregate": (
        "What is the {f} {n} of all {t}?",
        "Show the {f} {n} of the {t}.",
        "Give me the {f} {n} for {t}.",
        "Find the {f} {n} among {t}.",
    ),
    "aggregate_where": (
        "What is the {f} {n} of {t} with {w}?",
        "Show the {f} {n} of all {t} with {w}.",
        "Give me the {f} {n} for {t} having {w}.",
        "Find the {f} {n} among {t} with {w}.",
    ),
    "group_count": (
        "How many {t} are there for each {k}?",
        "Count the {t} per {k}.",
        "Show each {k} and its number of {t}.",
        "For every {k}, what is the number of {t}?",
    ),
    "group_aggregate": (
        "What is the {f} {n} of {t} for each {k}?",
        "Show the {f} {n} of {t} per {k}.",
        "For every {k}, give me the {f} {n} of the {t}.",
        "List each {k} with the {f} {n} of its {t}.",
    ),
    "having": (
        "Which {k} values have {hv} {t}?",
        "List each {k} with {hv} {t}.",
        "Show every {k} that has {hv} {t}.",
    ),
    "order": (
        "List the {c} of all {t} ordered by {n}, {o}.",
        "Show the {c} of every {s} sorted by {n}, {o}.",
        "Give me the {c} for all {t} in order of {n}, {o}.",
        "Sort the {t} by {n}, {o}, and show the {c}.",
    ),
    "order_where": (
        "List the {c} of all {t} with {w} ordered by {n}, {o}.",
        "Show the {c} of {t} with {w} sorted by {n}, {o}.",
        "Give me the {c} for every {s} with {w} in order of {n}, {o}.",
    ),
    "top": (
        "Show the {c} of the {lim} {t} with the {x} {n}.",
        "Which {lim} {t} have the {x} {n}? Give me the {c}.",
        "List the {c} for the {lim} {t} with the {x} {n}.",
        "What is the {c} of the {lim} {t} having the {x} {n}?",
    ),
    "top_where": (
        "Show the {c} of the {lim} {t} with the {x} {n} among those with {w}.",
        "List the {c} for the {lim} {t} with {w} and the {x} {n}.",
        "Of the {t} with {w}, which {lim} have the {x} {n}? Give me the {c}.",
    ),
    "join_list": (
        "Show the {c} of each {s} and the {d} of its {p}.",
        "List the {c} of all {t} with the {d} of the {p}.",
        "For every {s}, give me its {c} and the {d} of the {p}.",
    ),
    "join_where": (
        "Show the {c} of {t} whose {p} has {w}.",
        "List the {c} of all {t} of the {p} with {w}.",
        "What is the {c} of {t} that belong to {ap} with {w}?",
        "Give me the {c} for every {s} whose {p} has {w}.",
    ),
    "join_count": (
        "How many {t} have {ap} with {w}?",
        "Count the {t} whose {p} has {w}.",
        "What is the number of {t} of the {p} with {w}?",
    ),
    "join_group": (
        "How many {t} are there for each {p}? Show the {d}.",
        "Count the {t} per {p} and show the {d}.",
        "List the {d} of each {p} with its number of {t}.",
    ),
}

PARAPHRASED: dict[str, tuple[str, ...]] = {
    "list": ("For every {s}, show the {c}.", "All {t}: what is the {c}?"),
    "list_two": ("Give me the {c} and the {d} for every {s}.", "Find all {t} and list {c} and {d}."),
    "distinct": ("Give me each {k} of the {t}, but only once.", "Among {t}, what are the different {k} values?"),
    "where": (
        "For {t} with {w}, list the {c}.",
        "I need the {c} of every {s} having {w}.",
        "There are {t} with {w}. What is the {c}?",
    ),
    "where_and": (
        "For {t} with {w} and {w2}, list the {c}.",
        "I need the {c} of every {s} having both {w} and {w2}.",
    ),
    "where_or": (
        "For {t} with {w} or {w2}, list the {c}.",
        "I need the {c} of every {s} having either {w} or {w2}.",
    ),
    "lookup": ("For the {s} with {w}, list the {d}.", "Find the {d} of the {s} having {w}."),
    "count": ("Give me the number of all {t}.", "{t}: how many are there?"),
    "count_where": ("Of all {t}, how many have {w}?", "Give me the number of {t} having {w}."),
    "count_distinct": ("Give me the number of distinct {k} values of the {t}.",),
    "aggregate": ("For all {t}, what is the {f} {n}?", "I need the {f} {n} of every {s}."),
    "aggregate_where": ("For {t} with {w}, what is the {f} {n}?", "Of all {t} with {w}, show the {f} {n}."),
    "group_count": ("Give me the number of {t} for every {k}.", "Per {k}, count the {t}."),
    "group_aggregate": ("Per {k}, show the {f} {n} of the {t}.", "Give me each {k} and the {f} {n} of all its {t}."),
    "having": ("Find each {k} having {hv} {t}.", "Give me the {k} values with {hv} {t}."),
    "order": ("Order all {t} by {n}, {o}, and list the {c}.", "By {n}, {o}: show the {c} of all {t}."),
    "order_where": ("Sort the {t} with {w} by {n}, {o}, and give me the {c}.",),
    "top": ("Find the {lim} {t} with the {x} {n} and show the {c}.", "The {x} {n}: list the {c} of those {lim} {t}."),
    "top_where": ("Among {t} with {w}, show the {c} of the {lim} with the {x} {n}.",),
    "join_list": ("Give me the {c} of every {s} and the {d} of the {p} of each.",),
    "join_where": ("For {t} of {ap} that has {w}, list the {c}.", "Which {c} do {t} whose {p} has {w} have?"),
    "join_count": ("Of all {t}, how many belong to {ap} with {w}?", "Give me the number of {t} whose {p} has {w}."),
    "join_group": ("For each {p}, show the {d} and the number of {t}.",),
}

# How often an intent is asked; conditions carry most of the mistakes worth learning from.
WEIGHTS: dict[str, int] = {
    "list": 3, "list_two": 4, "distinct": 3, "where": 14, "where_and": 10, "where_or": 7, "lookup": 5, "count": 1,
    "count_where": 8, "count_distinct": 2, "aggregate": 4, "aggregate_where": 8, "group_count": 3,
    "group_aggregate": 5, "having": 4, "order": 5, "order_where": 5, "top": 6, "top_where": 5, "join_list": 3,
    "join_where": 8, "join_count": 5, "join_group": 2,
}  # fmt: skip

COMPARISONS: dict[str, tuple[str, ...]] = {
    ">": ("over", "above", "more than"),
    ">=": ("at least", "no less than", "from"),
    "<": ("under", "below", "less than"),
    "<=": ("at most", "no more than", "up to"),
}
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "AVG": ("average", "mean"),
    "SUM": ("total", "summed"),
    "MIN": ("smallest", "minimum"),
    "MAX": ("largest", "maximum"),
}
ORDERS: dict[str, tuple[str, ...]] = {
    "ASC": ("ascending", "lowest first"),
    "DESC": ("descending", "highest first"),
}
SUPERLATIVES: dict[str, tuple[str, ...]] = {"ASC": ("lowest", "smallest"), "DESC": ("highest", "greatest")}
HAVING: dict[str, tuple[str, ...]] = {">": ("more than {n}",), ">=": ("at least {n}",), "<": ("fewer than {n}",)}
