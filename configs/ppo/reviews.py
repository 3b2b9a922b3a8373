"""PPO towards pleased reviews in English and Chinese, judged by a classifier that neither policy nor reward model sees.

camelid train --config=configs/ppo/reviews.py --workdir=runs/reviews/ppo
"""

from camelid.configs.rl import ppo_base
from camelid.train.settings import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/reviews/sft", reward="runs/reviews/reward", kl=0.2, steps=60)
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"reviews": {"source": "reviews:chat", "format": "auto", "weight": 1.0}}
    c.data.batch_size = 64
    c.data.max_prompt_tokens = 48
    c.data.heldout_prompts = 256
    c.rollout.max_tokens = 48
    c.reward.sources.proxy = {"model": a.reward, "weight": 1.0}
    c.judges.gold = {"function": "camelid.evals.sentiment:gold"}
    c.critic.init_from = a.reward
    c.critic.lr = 3e-4
    c.optim.lr = 2e-4
    c.kl.coef = a.kl
    c.ppo.epochs = 2
    c.ppo.minibatches = 4
    c.total_steps = a.steps
    c.eval_percent = 10.0
    c.watch.proxy, c.watch.gold = "eval/heldout/scores", "eval/heldout/scores/gold"
    return c
