"""PPO on random walks against a reward model that was trained on pairs; the verifier only evaluates it.

camelid train --config=configs/ppo/walks.py --workdir=runs/walks/ppo

Mean optimality of walks drawn at temperature 1: 0.28 before, and 0.94, 0.93 and 0.92 after under a minute a seed on two
cores (seeds 0 to 2). GRPO on the verifier itself reaches 0.99, 0.99 and 0.97 (configs/grpo/walks.py).
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/walks/sft", reward="runs/walks/reward", kl=0.3, steps=60)
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"walks": {"source": "walks:chat", "format": "auto", "weight": 1.0}}
    c.data.batch_size = 20  # every start of a walk in every step
    c.data.max_prompt_tokens = 24
    c.rollout.max_tokens = 12
    c.rollout.n = 8
    c.reward.sources.proxy = {"model": a.reward, "weight": 1.0}
    c.reward.shaping.missing_eos = -2.0
    c.eval_rewards.optimality = {"task": "walks"}
    c.critic.init_from = a.reward
    c.critic.lr = 1e-3
    c.optim.lr = 5e-4
    c.kl.coef = a.kl
    c.ppo.epochs = 2
    c.ppo.minibatches = 4
    c.total_steps = a.steps
    c.eval_percent = 10.0
    return c
