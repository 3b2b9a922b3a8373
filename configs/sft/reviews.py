"""Tuning on reviews: the model learns to continue a review from its beginning.

camelid train --config=configs/sft/reviews.py --workdir=runs/reviews/sft
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/reviews/pretrain", epochs=1.0)
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.template = "chatml"
    c.data.mixture = {"reviews": {"source": "reviews:chat", "format": "auto", "weight": 1.0}}
    c.data.packing = "best_fit"
    c.data.seq_len = 192
    c.data.batch_size = 24
    c.data.cache_dir = "runs/cache"
    c.total_epochs = a.epochs
    c.optim.lr = 1e-3
    c.schedule.warmup_percent = 3.0
    return c
