"""The common part of `configs/sft/lora.py` and `lisa.py`, which tune an existing model on your own records."""

from types import SimpleNamespace

from ml_collections import ConfigDict

from camelid.configs.base import base, joined

ARGUMENTS = {"init_from": "", "source": "", "seq_len": 512, "batch_size": 8, "epochs": 1.0, "dtype": "float32"}


def records_base(a: SimpleNamespace) -> ConfigDict:
    """The config that both share. a: the config file's arguments, which are `ARGUMENTS` and `lr`."""
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.model.dtype = a.dtype
    c.data.mixture = joined(a.source)
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
