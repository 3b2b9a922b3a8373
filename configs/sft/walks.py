"""Random walks: a small random model learns the edges of a graph, and walks on it as aimlessly as its examples.

camelid tokenizer train --source=walks:chat --vocab_size=304 --special='<|im_start|>' --special='<|im_end|>' \\
    --output=runs/walks/tokenizer
camelid train --config=configs/sft/walks.py --workdir=runs/walks/sft
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, tokenizer="runs/walks/tokenizer", preset="nano-test", steps=250)
    c = base()
    c.recipe = "sft"
    c.model.preset = a.preset
    c.tokenizer = a.tokenizer
    c.template = "chatml"
    c.data.mixture = {"walks": {"source": "walks:chat", "format": "auto", "weight": 1.0}}
    c.data.packing = "best_fit"
    c.data.seq_len = 128
    c.data.batch_size = 32
    c.data.cache_dir = "runs/cache"
    c.total_steps = a.steps
    c.optim.lr = 3e-3
    c.schedule.warmup_percent = 3.0
    c.eval_percent = 25.0
    return c
