"""A reward model on your own preference pairs, in any format of docs/data.md.

camelid train --config=configs/reward/pairs.py:init_from=runs/sft,source=pairs_en.json+pairs_zh.json \\
    --workdir=runs/reward

On LLaMA-Factory's dpo_en_demo.json and dpo_zh_demo.json, from the model that the README tunes on real text, with
seq_len=1536,batch_size=4,lr=2e-4 --config.model.max_len=1536 --config.data.heldout=0.2, it orders 52% of the 23
held-out English pairs and 72% of the 46 Chinese ones.
"""

from camelid.configs.base import joined
from camelid.configs.preferences import reward_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg, init_from="runs/sft", source="pairs.jsonl", seq_len=512, batch_size=64, epochs=1.0, lr=9e-6
    )
    c = reward_base()
    c.init_from = a.init_from
    c.data.mixture = joined(a.source, "pairs")
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.1
    c.total_epochs = a.epochs
    c.optim.lr = a.lr
    c.calibrate.prompts = 0
    c.eval_percent = 25.0
    return c
