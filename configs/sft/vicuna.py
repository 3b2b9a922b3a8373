"""Vicuna's tuning on multi-turn conversations in ShareGPT's format: its template, 2,048 tokens, a loss on all answers.

    camelid train --config=configs/sft/vicuna.py:init_from=runs/llama-7b,source='sharegpt/*.json' --workdir=runs/vicuna

Learning rate, schedule and epochs are FastChat's for 7B and 13B. The backward pass recomputes all of a layer but
attention's output, which saves memory in long rows. With rows longer than the checkpoint's context, `rope` stretches
it to them; `rope=linear` is what Vicuna's versions for 16,384 tokens do.

7B and 13B fit on 8 A100 of 80 GB. With rows of 16,384 tokens, a batch is computed in parts of one row for each device
(docs/scaling.md):

    camelid plan --config=configs/sft/vicuna.py:init_from=llama-13b,dtype=bfloat16 \\
        --architecture=llama-13b --topology=a100-80gb:8
    camelid plan --config=configs/sft/vicuna.py:init_from=llama-13b,seq_len=16384,rope=linear,dtype=bfloat16 \\
        --architecture=llama-13b --topology=a100-80gb:8 --config.optim.accumulate=4
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="runs/pretrain",
        source="sharegpt/*.json",
        seq_len=2048,
        batch_size=32,
        lr=2e-5,
        dtype="float32",
        rope="",
    )
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.template = "vicuna"
    c.model.dtype = a.dtype
    c.model.remat = "attention"
    if a.rope:
        c.model.max_len = a.seq_len
        c.model.rope_scaling = {"kind": a.rope}
    c.data.mixture = {"sharegpt": {"source": a.source, "format": "sharegpt", "weight": 1.0}}
    c.data.packing = "best_fit"
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.02
    c.total_epochs = 3.0
    c.optim.lr = a.lr
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 3.0
    c.schedule.final = 0.0
    return c
