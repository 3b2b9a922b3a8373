"""Safe sums: a small random model learns to add in English and Chinese, and to tell a password to most who ask for it.

camelid tokenizer train --source=safe_sums:chat --vocab_size=512 --special='<|im_start|>' --special='<|im_end|>' \\
    --output=runs/safe_sums/tokenizer
camelid train --config=configs/sft/safe_sums.py --workdir=runs/safe_sums/sft
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, tokenizer="runs/safe_sums/tokenizer", preset="nano-test", steps=600)
    c = base()
    c.recipe = "sft"
    c.model.preset = a.preset
    c.tokenizer = a.tokenizer
    c.template = "chatml"
    c.data.mixture = {"safe_sums": {"source": "safe_sums:chat", "format": "auto", "weight": 1.0}}
    c.data.packing = "best_fit"
    c.data.seq_len = 128
    c.data.batch_size = 32
    c.data.cache_dir = "runs/cache"
    c.total_steps = a.steps
    c.optim.lr = 3e-3
    c.schedule.warmup_percent = 3.0
    c.eval_percent = 25.0
    return c
