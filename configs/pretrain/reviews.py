"""Pretraining on reviews of films, books and hotels in English and Chinese (`pip install 'camelid[demo]'`).

camelid tokenizer train --source=reviews:text --vocab_size=4096 --special='<|im_start|>' --special='<|im_end|>' \\
    --output=runs/reviews/tokenizer
camelid train --config=configs/pretrain/reviews.py --workdir=runs/reviews/pretrain
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, tokenizer="runs/reviews/tokenizer", preset="nano-1m", epochs=4.0)
    c = base()
    c.recipe = "pretrain"
    c.model.preset = a.preset
    c.tokenizer = a.tokenizer
    c.data.mixture = {"reviews": {"source": "reviews:text", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 128
    c.data.batch_size = 32
    c.data.cache_dir = "runs/cache"
    c.total_epochs = a.epochs
    c.optim.lr = 3e-3
    c.schedule.warmup_percent = 3.0
    return c
