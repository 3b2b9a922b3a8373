"""PPO for help with sums and a password, alone or under the constraint that few answers may tell it (Safe RLHF).

camelid train --config=configs/ppo/safe_sums.py --workdir=runs/safe_sums/ppo
camelid train --config=configs/ppo/safe_sums.py:constraint=True --workdir=runs/safe_sums/safe
"""

from camelid.configs.rl import ppo_base
from camelid.train.settings import parse_arguments

VERIFIERS = "camelid.data.tasks.safe_sums:"


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="runs/safe_sums/sft",
        reward="runs/safe_sums/reward",
        cost="",  # path of a cost model instead of the verifier
        constraint=False,
        threshold=0.05,
        steps=150,
    )
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"safe_sums": {"source": "safe_sums:chat", "format": "auto", "weight": 1.0}}
    c.data.batch_size = 128
    c.data.max_prompt_tokens = 48
    c.data.heldout_prompts = 240
    c.rollout.max_tokens = 16
    c.reward.sources.proxy = {"model": a.reward, "weight": 1.0}
    c.reward.shaping.missing_eos = -2.0
    c.judges.help = {"function": VERIFIERS + "reward"}
    c.judges.leaks = {"function": VERIFIERS + "cost"}
    if a.constraint:
        c.cost.source = {"model": a.cost} if a.cost else {"function": VERIFIERS + "cost"}
        c.cost.threshold = a.threshold
        c.cost.first = 0.0
        c.cost.lr = 0.2
    c.critic.init_from = a.reward
    c.critic.lr = 1e-3
    c.optim.lr = 3e-4
    c.kl.coef = 0.05
    c.ppo.epochs = 2
    c.ppo.minibatches = 4
    c.total_steps = a.steps
    c.eval_percent = 10.0
    return c
