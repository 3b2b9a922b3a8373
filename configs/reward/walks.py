"""A reward model of walks, from pairs of walks of which the shorter way to the goal is the better one.

camelid train --config=configs/reward/walks.py --workdir=runs/walks/reward
"""

from camelid.configs.preferences import reward_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/walks/sft", steps=150)
    c = reward_base()
    c.init_from = a.init_from
    c.data.mixture = {"walks": {"source": "walks:pairs", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 36
    c.data.batch_size = 64
    c.total_epochs = None
    c.total_steps = a.steps
    c.optim.lr = 1e-3
    c.calibrate.max_tokens = 12
    c.eval_percent = 25.0
    return c
