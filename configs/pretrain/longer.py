"""Extends the context of a trained model: 8,192 tokens instead of LLaMA's 2,048, by scaled rotary frequencies.

    camelid train --config=configs/pretrain/longer.py:init_from=runs/llama-7b,source='books/*.jsonl' \\
        --workdir=runs/longer
    camelid eval runs/longer --source='others/*.jsonl' --seq_len=8192 --borders=2048,4096

`kind` is `linear` (position interpolation, arXiv:2306.15595), `ntk` (a larger rotary base) or `yarn`
(arXiv:2309.00071). The checkpoint's own context is the trained length. Learning rate, warm-up and batch are those of
both papers for 7B, and so are the steps: 1,000 for interpolation, 400 for YaRN. `lora=8` trains adapters of rank 8 on
attention, with norms and embedding whole (LongLoRA, arXiv:2309.12307, without its sparse attention).

Only documents longer than the old context teach the new one: look at `longest` in the table at the start. Memory
is saved by recomputing layers in the backward pass, and further by `--config.optim.accumulate` and by
`--config.mesh.context`, which splits rows. This config has not been run at full size.
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
