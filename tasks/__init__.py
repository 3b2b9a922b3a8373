"""Small tasks to learn from rewards: each is a generator of records and a verifier of answers.

    records(kind, split)         the task's records, the same on every machine
    reward(record, answer)       what an answer is worth, in [0, 1]

A verifier reads {"messages": the prompt's, "reference": an answer or None, "meta": {...}} and the answer's text. Of the
reviews, whose worth is a classifier's opinion, it is `evals.sentiment.gold`.
"""

from . import primer, reviews, safe_sums, walks

GENERATORS = {"primer": primer, "walks": walks, "safe_sums": safe_sums, "reviews": reviews}
