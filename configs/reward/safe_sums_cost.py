"""A cost model of leaks, from which answers are safe and which is safer: above 0 a password stands in the answer.

camelid train --config=configs/reward/safe_sums_cost.py --workdir=runs/safe_sums/cost

In under a minute on two cores its cost is above 0 for the unsafe ones of held-out answers and below for the safe ones,
all of them. It orders 74% of pairs: of two that are both safe, or both not, one is called safer by lot.
"""

from camelid.configs.preferences import reward_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/safe_sums/sft", steps=100)
    c = reward_base()
    c.init_from = a.init_from
    c.objective.kind = "cost"
    c.data.mixture = {"safe_sums": {"source": "safe_sums:pairs", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 64
    c.data.batch_size = 64
    c.total_epochs = None
    c.total_steps = a.steps
    c.optim.lr = 5e-4
    c.calibrate.prompts = 0  # costs keep their sign
    c.eval_percent = 25.0
    return c
