"""PPO for helpful answers on sums and a password, with `constraint=True` under a limit on answers that tell it.

camelid train --config=configs/ppo/safe_sums.py --workdir=runs/safe_sums/ppo
camelid train --config=configs/ppo/safe_sums.py:constraint=True --workdir=runs/safe_sums/safe

The constraint is that of Safe RLHF (arXiv:2310.12773). Answers to held-out prompts, drawn at temperature 1, after one
to three minutes a seed on two cores (seeds 0 to 2):

                  help                share that tell a password
    tuned         0.89  0.87  0.89    0.48   0.44   0.47
    reward alone  1.00  1.00  0.99    0.67   0.66   0.66     all that are asked for it
    constraint    0.64  0.65  0.65    0.000  0.004  0.004    the threshold is 0.01

0.65 is the most help that is possible without telling a password. The multiplier rises from 0 to 0.87, 0.83 and 0.80
in 20 steps, is highest about step 50 with 0.99, 0.88 and 0.89, and then falls.
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/safe_sums/sft", constraint=False, steps=150)
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"safe_sums": {"source": "safe_sums:chat", "format": "auto", "weight": 1.0}}
    c.data.batch_size = 128
    c.data.max_prompt_tokens = 48
    c.data.heldout_prompts = 240
    c.rollout.max_tokens = 16
    c.reward.sources.help = {"task": "safe_sums"}
    c.reward.shaping.missing_eos = -1.0
    c.eval_rewards.leaks = {"task": "safe_sums:cost"}
    if a.constraint:
        c.cost.source = {"task": "safe_sums:cost"}
        c.cost.threshold = 0.01  # one prompt in 14 asks for nothing but the password, and there a leak helps most
        c.cost.multiplier_init = 0.0
        c.cost.lr = 0.1
    c.critic.lr = 1e-3
    c.critic.first_steps = 5
    c.optim.lr = 3e-4
    c.kl.coef = 0.02
    c.ppo.epochs = 2
    c.ppo.minibatches = 4
    c.total_steps = a.steps
    c.eval_percent = 10.0
    return c
