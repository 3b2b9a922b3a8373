"""Instruction tuning on Alpaca records, from a checkpoint of any size.

    camelid train --config=configs/sft/alpaca.py:init_from=runs/llama-7b,source='alpaca_data.json' --workdir=runs/alpaca

Learning rate and epochs are those of Stanford's release for 7B (128 conversations, 2e-5, 3 epochs); for 13B give
lr=1e-5,epochs=5. Rows of 512 tokens are packed and hold several conversations each, so a batch has 32 rows. For a small
model raise the learning rate.

7B fits on 4 A100 of 80 GB and 13B on 8 of them, also with rows of 2,048 tokens (docs/scaling.md):

    camelid plan --config=configs/sft/alpaca.py:init_from=llama-7b,seq_len=2048,batch_size=8,dtype=bfloat16 \\
        --architecture=llama-7b --topology=a100-80gb:4
"""

from camelid.configs.base import base, joined
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="runs/pretrain",
        source="alpaca_data.json",
        seq_len=512,
        batch_size=32,
        lr=2e-5,
        epochs=3.0,
        dtype="float32",
    )
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.model.dtype = a.dtype
    c.template = "alpaca"
    c.data.mixture = joined(a.source, "alpaca")
    c.data.packing = "best_fit"
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.05
    c.total_epochs = a.epochs
    c.optim.lr = a.lr
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 3.0
    return c
