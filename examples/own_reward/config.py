"""GRPO on the primer's questions with the rewards of reward.py.

camelid train --config=config.py --workdir=../runs/own_reward
"""

from camelid.configs.grpo.primer import get_config as shipped


def get_config():
    c = shipped("init_from=../runs/start,steps=100")
    c.reward.sources = {
        "overlap": {"function": "reward.py:overlap"},
        "shorter": {"function": "reward.py:shorter", "weight": 0.05},
    }
    c.eval_rewards.truth = {"task": "primer"}  # measured only: the score that the words stand in for
    c.eval_percent = 50.0
    c.log_steps = 10
    c.evals = {}
    return c
