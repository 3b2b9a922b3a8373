"""Alpaca's 52K: whole tasks from the 175 seed tasks of self-instruct, with any teacher.

    camelid curate instruct --config=configs/curate/alpaca.py:seeds=seed_tasks_en.jsonl \\
        --teacher=https://api.openai.com/v1 --model=gpt-4o --output=datasets/alpaca --report=reports/alpaca
    camelid train --config=configs/sft/alpaca.py:init_from=MODEL,source=datasets/alpaca --workdir=runs/alpaca

As published by Stanford Alpaca: three seeds are shown, the list ends with number 20, temperature 1, ROUGE-L of at most
0.7, instructions of 4 to 150 words, 52,002 rows. The prompt is worded anew and made for chat models. `language=zh`
takes Chinese prompts and rules.
"""

from ml_collections import ConfigDict

from camelid.curate.teachers.instruct import Instruct
from camelid.settings.config_files import parse_arguments
from camelid.settings.sections import to_config


def get_config(arg=None):
    a = parse_arguments(arg, seeds="seed_tasks_en.jsonl", language="en", rows=52_002)
    c = to_config(Instruct())
    c.name = "alpaca"
    c.languages = ConfigDict({a.language: {"seeds": a.seeds, "rows": a.rows, "licence": None}})
    c.shown_seeds = 3
    c.tasks = 17
    c.temperature = 1.0
    c.max_tokens = 3072
    c.threshold = 0.7
    return c
