"""A model of somebody else's, tuned on one's own records with low-rank adapters.

    camelid train --config=configs/sft/lora.py:init_from=model.gguf,source=mine.json --workdir=runs/mine
    camelid chat runs/mine

`init_from` is a folder of Hugging Face's or Meta's, a GGUF file or a run; its own chat template is used. Every
matrix of every layer gets an adapter of `rank`, with LoRA's usual learning rate, ten times that of full tuning.
With `quantize=nf4` the base is kept in four bits a number (QLoRA).
"""

from camelid.configs.base import base
from camelid.train.settings import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="",
        source="",
        rank=16,
        seq_len=512,
        batch_size=8,
        lr=2e-4,
        epochs=1.0,
        dtype="float32",
        quantize="",
    )
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.model.dtype = a.dtype
    c.model.remat = "dots"  # less memory and, on a CPU, less time: what is not kept is not written and read
    c.lora.targets = [(r"layers/(attention|mlp)/.*", a.rank)]
    c.lora.alpha = 2.0 * a.rank
    c.lora.quantize = a.quantize or None
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
