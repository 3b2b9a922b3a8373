"""A reward model on pairs of a tuned primer model's own answers, labelled by the gold score with noise.

camelid data pairs runs/sft --source=primer:chat --reward=camelid.data.primer:reward --noise=0.1 \\
    --output=runs/pairs.jsonl
camelid train --config=configs/reward/primer.py:init_from=runs/sft,pairs=runs/pairs.jsonl --workdir=runs/reward
"""

from camelid.configs.preferences import reward_base
from camelid.train.settings import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", pairs="runs/pairs.jsonl", steps=200, max_pairs=0)
    c = reward_base()
    c.init_from = a.init_from
    c.data.mixture = {"pairs": {"source": a.pairs, "format": "auto", "weight": 1.0}}
    c.data.seq_len = 96
    c.data.batch_size = 32
    c.data.max_pairs = a.max_pairs or None
    c.total_epochs = None
    c.total_steps = a.steps
    c.optim.lr = 1e-3
    c.normalise.prompts = 256
    c.normalise.max_tokens = 40
    c.eval_percent = 25.0
    c.eval_batches = 16
    return c
