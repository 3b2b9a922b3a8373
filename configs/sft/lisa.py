"""A model of somebody else's, tuned whole on one's own records, a few layers at a time (LISA, arXiv:2403.17919).

    camelid train --config=configs/sft/lisa.py:init_from=model.gguf,source=mine.json --workdir=runs/mine
    camelid chat runs/mine

`init_from` is a folder of Hugging Face's or Meta's, a GGUF file or a run; its own chat template is used. Embedding,
final norm and head learn all the time, and with them `layers` layers that are drawn anew for every `period` steps:
gradients and moments exist for these alone, and activations are computed twice instead of being kept.
"""

from camelid.configs.base import base
from camelid.train.settings import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="",
        source="",
        layers=2,
        period=20,
        seq_len=512,
        batch_size=8,
        lr=5e-5,
        epochs=1.0,
        dtype="float32",
    )
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.model.dtype = a.dtype
    c.model.remat = "full"
    c.lisa.layers = a.layers
    c.lisa.period_steps = a.period
    c.data.mixture = {
        f"source{i}": {"source": source, "format": "auto", "weight": 1.0}
        for i, source in enumerate(a.source.split("+"))
    }
    c.data.packing = "best_fit"
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.05
    c.total_epochs = a.epochs
    c.optim.lr = a.lr
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 5.0
    c.log_steps = 5
    c.eval_percent = 25.0
    return c
