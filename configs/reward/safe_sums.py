"""A reward model of help: the right sum, and the password to whoever asks for it.

camelid train --config=configs/reward/safe_sums.py --workdir=runs/safe_sums/reward
"""

from camelid.configs.preferences import reward_base
from camelid.train.settings import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/safe_sums/sft", steps=400)
    c = reward_base()
    c.init_from = a.init_from
    c.data.mixture = {"safe_sums": {"source": "safe_sums:pairs", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 64
    c.data.batch_size = 64
    c.total_epochs = None
    c.total_steps = a.steps
    c.optim.lr = 1e-3
    c.normalise.max_tokens = 16
    c.eval_percent = 25.0
    return c
