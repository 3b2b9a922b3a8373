"""A trained model taught to read further: 8,192 tokens instead of LLaMA's 2,048, its positions stretched.

    camelid train --config=configs/pretrain/longer.py:init_from=runs/llama-7b,source='books/*.jsonl' \\
        --workdir=runs/longer
    camelid eval runs/longer --source='others/*.jsonl' --seq_len=8192 --borders=2048,4096

`kind` is `linear` (position interpolation, arXiv:2306.15595), `ntk` (a larger rotary base) or `yarn`
(arXiv:2309.00071). What is stretched is the context that the checkpoint names. Learning rate, warm-up and batch are
those of both papers for 7B, and so are the steps, 1,000 for interpolation and 400 for YaRN. With `lora=8` adapters of
attention learn, and norms and embedding whole (LongLoRA, arXiv:2309.12307, without its sparse attention).

A document teaches no more than its own length: `longest` in the table at the start must be beyond the old context.
Memory is saved by recomputing layers, by `--config.optim.accumulate`, and by `--config.mesh.context`, which splits
rows. Nobody has run this config at full size here.
"""

from camelid.configs.base import base, joined
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg, init_from="runs/pretrain", source="books/*.jsonl", kind="yarn", length=8192, batch_size=64, lr=2e-5, lora=0
    )
    c = base()
    c.recipe = "pretrain"
    c.init_from = a.init_from
    c.model.max_len = a.length
    c.model.rope_scaling = {"kind": a.kind}
    c.model.remat = "attention"
    if a.lora:
        c.lora.targets = [(r"layers/attention/.*", a.lora)]
        c.lora.whole = [r".*norm/scale", r"embed/embedding"]
    c.data.mixture = joined(a.source, "text")
    c.data.seq_len = a.length
    c.data.batch_size = a.batch_size
    c.total_steps = 400 if a.kind == "yarn" else 1000
    c.optim.lr = a.lr
    c.optim.weight_decay = 0.0
    c.schedule.name = "constant"
    c.schedule.warmup_percent = None
    c.schedule.warmup_steps = 20
    return c
