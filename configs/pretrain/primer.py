"""Pretrains a small LLaMA on the primer's documents, which describe a closed world in English and Chinese.

    camelid tokenizer train --source=primer:documents --source=primer:chat --vocab_size=1024 \\
        --special='<|im_start|>' --special='<|im_end|>' --output=runs/tokenizer
    camelid train --config=configs/pretrain/primer.py --workdir=runs/pretrain
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, preset="nano-1m", tokenizer="runs/tokenizer", steps=1000)
    c = base()
    c.recipe = "pretrain"
    c.model.preset = a.preset
    c.tokenizer = a.tokenizer
    c.data.mixture = {"primer": {"source": "primer:documents", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 128
    c.data.batch_size = 16
    c.data.cache_dir = "runs/cache"
    c.total_steps = a.steps
    c.optim.lr = 3e-3
    c.schedule.warmup_percent = 3.0
    c.eval_percent = 25.0
    return c
