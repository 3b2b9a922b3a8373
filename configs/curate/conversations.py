"""Cleans conversations that were exported from chat pages, such as ShareGPT's.

    camelid curate conversations --source='sharegpt/*.json' --output=datasets/chats
    camelid curate run --config=configs/curate/conversations.py:sources=chats.json,refusals=drop --output=datasets/chats

`identity` and `refusals` are "drop", "drop_pair" or, for identity, "rename" (with `config.step.identity.name` and
`maker`); without them answers of both kinds stay. `against` is a file of evaluation questions whose copies are dropped.
With `tokenizer` lengths are counted in its tokens, else in characters; `budget` is the most of a training sample.
"""

from camelid.configs.curate.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg, sources="", identity="", refusals="", against="", tokenizer="", budget=0, heldout=0.01, name="chats"
    )
    c = base(a.sources)
    c.name = a.name
    c.tokenizer = a.tokenizer or None
    c.steps = [
        "conversation",  # turns and roles in order
        "markdown",  # HTML of exports
        "residue",  # labels of buttons and page counters, which stand in the text once it is no HTML
        "language",
        "length",
        *(["identity"] if a.identity else []),
        *(["refusals"] if a.refusals else []),
        "personal_data",  # before duplicates, so that texts that differ by a name in a placeholder are found
        "exact_duplicates",
        "near_duplicates",
        *(["decontaminate"] if a.against else []),
        "heldout",  # before splitting, so that parts of a conversation stay together
        "split_long",
    ]
    if a.identity:
        c.step.identity.action = a.identity
    if a.refusals:
        c.step.refusals.action = a.refusals
    if a.against:
        c.step.decontaminate.against = {"evaluation": {"source": a.against}}
    for step in ("length", "split_long"):
        c.step[step].tokenizer = a.tokenizer or None
    c.step.split_long.budget = a.budget or (2048 if a.tokenizer else 8192)
    c.step.heldout.share = a.heldout
    return c
