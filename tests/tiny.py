"""A run of seconds, for the tests: `tiny.py:root=DIR` pretrains on DIR/text.jsonl, `recipe=sft` on DIR/chat.jsonl.

`init_from` names the run to tune from, `lora` the adapters to tune with (`tiny_lora.py`).
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments
from camelid.tests.tiny_lora import put_adapters


def get_config(arg=None):
    a = parse_arguments(arg, root="", recipe="pretrain", init_from=None, lora="")
    c = base()
    c.recipe = a.recipe
    c.data.seq_len = 64
    c.data.batch_size = 16
    c.data.heldout = 0.1
    c.data.cache_dir = f"{a.root}/cache"
    c.total_steps = 24
    c.optim.lr = 1e-2
    c.schedule.warmup_percent = 10.0
    c.log_steps = 1
    c.eval_percent = 50.0
    c.checkpoint.every_steps = 12
    if a.recipe == "pretrain":
        c.model.preset = "nano-test"
        c.tokenizer = f"{a.root}/tokenizer"
        c.data.mixture = {"text": {"source": f"{a.root}/text.jsonl", "format": "auto", "weight": 1.0}}
    else:
        c.init_from = a.init_from
        c.template = "chatml"
        c.data.mixture = {"chat": {"source": f"{a.root}/chat.jsonl", "format": "alpaca", "weight": 1.0}}
        c.data.packing = "best_fit"
        c.optim.accumulate = 2
        c.ema_decay = 0.8
    put_adapters(c, a.lora)
    return c
