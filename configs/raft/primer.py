"""RAFT on the primer's instructions: the policy is tuned on the best of eight of its own answers by the primer's score.

camelid train --config=configs/raft/primer.py:init_from=runs/sft --workdir=runs/raft
"""

from camelid.configs.rl import raft_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", steps=40)
    c = raft_base()
    c.init_from = a.init_from
    c.data.mixture = {"primer": {"source": "primer:chat", "format": "auto", "weight": 1.0}}
    c.data.max_prompt_tokens = 48
    c.rollout.max_tokens = 24
    c.rollout.temperature = 1.0
    c.reward.sources.gold = {"task": "primer", "weight": 1.0}
    c.raft.minibatches = 2
    c.optim.lr = 3e-4
    c.total_steps = a.steps
    c.eval_percent = 25.0
    c.evals.primer = {"per_group": 10, "max_tokens": 24, "shown": 1}
    return c
