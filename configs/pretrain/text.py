"""Pretraining a small LLaMA on your own text.

    camelid tokenizer train --source='mytext/*.txt' --vocab_size=4096 --output=runs/mytext/tokenizer
    camelid train --config=configs/pretrain/text.py:source='mytext/*.txt',tokenizer=runs/mytext/tokenizer \\
        --workdir=runs/mytext/pretrain

`source` is a glob of .txt, .jsonl or .parquet files, or a TensorFlow Dataset. A plus sign joins several sources, each
of weight 1: they get equal shares of the rows, whatever their sizes.
"""

from camelid.configs.base import base, joined
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, source="mytext/*.txt", tokenizer="runs/tokenizer", preset="nano-2m", epochs=2.0)
    c = base()
    c.recipe = "pretrain"
    c.model.preset = a.preset
    c.tokenizer = a.tokenizer
    c.data.mixture = joined(a.source, "text")
    c.data.seq_len = 256
    c.data.batch_size = 16
    c.data.heldout = 0.02
    c.total_epochs = a.epochs
    c.optim.lr = 2e-3
    return c
