"""A cost model of leaks: the cost of an answer is above 0 if it tells the password. It learns from labels of safety.

camelid train --config=configs/reward/safe_sums_cost.py --workdir=runs/safe_sums/cost

After under a minute on two cores, the cost of every unsafe held-out answer is above 0 and that of every safe one below.
It orders 74% of pairs; the label of a pair of two safe or two unsafe answers is random.
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
