"""GRPO on random walks against the verifier, a reward that is never wrong.

camelid train --config=configs/grpo/walks.py --workdir=runs/walks/grpo

Mean optimality of walks drawn at temperature 1: 0.28 before, and 0.99, 0.99 and 0.97 after under a minute a seed on two
cores (seeds 0 to 2). Walks that are always the shortest have 1.
"""

from camelid.configs.rl import grpo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/walks/sft", steps=100)
    c = grpo_base()
    c.init_from = a.init_from
    c.data.mixture = {"walks": {"source": "walks:chat", "format": "auto", "weight": 1.0}}
    c.data.batch_size = 20  # every start of a walk in every step
    c.data.max_prompt_tokens = 24
    c.rollout.max_tokens = 12
    c.rollout.n = 8
    c.reward.sources.optimality = {"task": "walks", "weight": 1.0}
    c.optim.lr = 5e-4
    c.grpo.kl_coef = 0.0
    c.total_steps = a.steps
    c.eval_percent = 10.0
    return c
