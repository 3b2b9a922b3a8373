"""The bilingual 100K of ColossalChat: instructions as people write them to an assistant, in English and Chinese.

    camelid curate instruct --config=configs/curate/colossalchat.py:english=seeds_en.jsonl,chinese=seeds_zh.jsonl \\
        --teacher=https://api.openai.com/v1 --model=gpt-4o --concurrency=64 --output=datasets/colossalchat \\
        --report=reports/colossalchat
    camelid train --config=configs/sft/alpaca.py:init_from=MODEL,source=datasets/colossalchat --workdir=runs/chat

As published with InstructionWild, the dataset that ColossalChat was tuned on: 429 seed instructions, each in both
languages, picked by hand from more than 700 that users had shared; five are shown in a request; instructions have no
input; the teacher then answers each one as it stands; the languages are made apart. It has 52,191 English and 51,504
Chinese rows and cost 880 dollars. ColossalChat's first stage trained on them together with Alpaca's 52,002 rows
(`configs/curate/alpaca.py`); give both folders as sources of a mixture.

Seeds are files with "instruction" fields, or text files with an instruction on each line. The rules against similar and
impossible tasks are those of Alpaca, with the variants for Chinese.
"""

from ml_collections import ConfigDict

from camelid.curate.teachers.instruct import Instruct
from camelid.settings.config_files import parse_arguments
from camelid.settings.sections import to_config


def get_config(arg=None):
    a = parse_arguments(
        arg, english="seeds_en.jsonl", chinese="seeds_zh.jsonl", english_rows=52_191, chinese_rows=51_504
    )
    c = to_config(Instruct())
    c.name = "colossalchat"
    c.languages = ConfigDict(
        {
            "en": {"seeds": a.english, "rows": a.english_rows, "licence": None},
            "zh": {"seeds": a.chinese, "rows": a.chinese_rows, "licence": None},
        }
    )
    c.method = "instruction_wild"
    c.shown_seeds = 5
    c.tasks = 15
    c.temperature = 1.0
    c.threshold = 0.7
    return c
