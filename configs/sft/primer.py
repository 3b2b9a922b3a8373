"""Instruction tuning on the primer's conversations, from a model pretrained on its documents.

camelid train --config=configs/sft/primer.py:init_from=runs/pretrain --workdir=runs/sft
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/pretrain", source="primer:chat", steps=1200)
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.template = "chatml"
    c.data.mixture = {"primer": {"source": a.source, "format": "auto", "weight": 1.0}}
    c.data.packing = "best_fit"
    c.data.seq_len = 128
    c.data.batch_size = 16
    c.data.cache_dir = "runs/cache"
    c.total_steps = a.steps
    c.optim.lr = 2e-3
    c.schedule.warmup_percent = 3.0
    c.evals.primer = {"per_group": 10, "max_tokens": 24, "shown": 1}
    c.eval_percent = 50.0
    return c
