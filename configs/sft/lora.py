"""Tunes an existing model on your own records with low-rank adapters.

    camelid train --config=configs/sft/lora.py:init_from=model.gguf,source=mine.json --workdir=runs/mine
    camelid chat runs/mine

`init_from` is a folder of Hugging Face's or Meta's, a GGUF file or a run; its own chat template is used. Every matrix
of every layer gets an adapter of rank `rank`. The learning rate is LoRA's usual one, ten times that of full tuning.
With `quantize=nf4` the base weights are kept in four bits each (QLoRA).

With `dtype=bfloat16` the base weights are kept in 16 bits, and the adapters stay in float32. 7B then fits on one GPU of
24 GB, with LoRA and with QLoRA (docs/scaling.md):

    camelid plan --config=configs/sft/lora.py:init_from=llama-7b,source=mine.json,dtype=bfloat16 \\
        --architecture=llama-7b --topology=rtx4090:1
"""

from camelid.configs.records import ARGUMENTS, records_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, **ARGUMENTS, rank=16, lr=2e-4, quantize="")
    c = records_base(a)
    c.model.param_dtype = a.dtype
    # On a CPU, where one computes in float32, "dots" takes less memory and less time: recomputed activations are not
    # written and read. It keeps the products of adapters too, 10 GB for 4,096 tokens of 7B in 16 bits.
    c.model.remat = "dots" if a.dtype == "float32" else "attention"
    c.lora.targets = [(r"layers/(attention|mlp)/.*", a.rank)]
    c.lora.alpha = 2.0 * a.rank
    c.lora.quantize = a.quantize or None
    return c
