"""GRPO on the primer's questions with the rewards of reward.py.

camelid train --config=config.py --workdir=../runs/own_reward
"""

from camelid.configs.grpo.primer import get_config as shipped
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, brevity=0.1)
    c = shipped("init_from=../runs/start,steps=40")
    c.reward.sources = {
        "overlap": {"function": "reward.py:overlap"},
        "shorter": {"function": "reward.py:shorter", "weight": a.brevity},
    }
    c.eval_rewards.truth = {"task": "primer"}  # measured only: the score that the words stand in for
    c.optim.lr = 3e-4
    c.eval_percent = 50.0
    c.log_steps = 10
    c.evals = {}
    return c
