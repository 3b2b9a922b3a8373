"""Cleans text for pretraining by published rules of quality, in English, Chinese and other languages.

    camelid curate run --config=configs/curate/text.py:sources=crawl/*.jsonl.gz --output=datasets/crawl
    camelid curate run --config=configs/curate/text.py:sources=crawl/*.jsonl.gz --show=3

The order is FineWeb's (arXiv:2406.17557): language, Gopher's repetition, Gopher's quality, C4, FineWeb, duplicates.
Personal data are masked before duplicates are looked for. `languages` are the codes that are kept, joined by plus
signs. `against` is a file of evaluation questions whose copies are dropped.
"""

from camelid.configs.curate.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, sources="", languages="en+zh", against="", tokenizer="", heldout=0.01, name="text")
    c = base(a.sources)
    c.name = a.name
    c.tokenizer = a.tokenizer or None
    c.partitions = 64
    c.steps = [
        "parse",
        "language",
        "gopher_repetition",
        "gopher",
        "c4",
        "fineweb",
        "personal_data",
        "exact_duplicates",
        "near_duplicates",
        *(["decontaminate"] if a.against else []),
        "heldout",
    ]
    c.step.language.keep = [code for code in a.languages.split("+") if code]
    if a.against:
        c.step.decontaminate.against = {"evaluation": {"source": a.against}}
    c.step.heldout.share = a.heldout
    return c
