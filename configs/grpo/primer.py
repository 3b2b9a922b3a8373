"""GRPO on the primer's instructions against the primer's score itself, a reward that is never wrong.

camelid train --config=configs/grpo/primer.py:init_from=runs/sft --workdir=runs/grpo

`variant` is grpo, dr_grpo, dapo or rloo.
"""

from camelid.configs.rl import grpo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", variant="grpo", steps=100)
    c = grpo_base()
    c.init_from = a.init_from
    c.data.mixture = {"primer": {"source": "primer:chat", "format": "auto", "weight": 1.0}}
    c.data.max_prompt_tokens = 48
    c.rollout.max_tokens = 24
    c.reward.sources.gold = {"task": "primer", "weight": 1.0}
    c.optim.lr = 5e-4
    c.total_steps = a.steps
    c.eval_percent = 25.0
    c.evals.primer = {"per_group": 10, "max_tokens": 24, "shown": 1}
    if a.variant == "dr_grpo":
        c.grpo.advantage, c.grpo.aggregate, c.grpo.kl_coef = "dr_grpo", "constant", 0.0
    elif a.variant == "dapo":
        c.grpo.clip_high, c.grpo.aggregate, c.grpo.kl_coef = 0.28, "token", 0.0
        c.grpo.drop_equal_groups, c.grpo.overlong = True, 8
    elif a.variant == "rloo":
        c.grpo.advantage, c.grpo.kl_in, c.grpo.kl_estimator = "rloo", "reward", "k1"
        c.grpo.aggregate = "token"
    return c
