"""PPO towards pleased reviews in English and Chinese, evaluated by a classifier that neither policy nor reward model
sees.

camelid train --config=configs/ppo/reviews.py --workdir=runs/reviews/ppo

Three minutes a seed on two cores raise the classifier's mean probability of a pleased review from 0.49 to 0.88, 0.89
and 0.86 (seeds 0 to 2; English 0.89, 0.91, 0.86; Chinese 0.85, 0.85, 0.86), at a KL of 9 nats an answer. With kl=0.05
and a reward model that is trained twice as long, the reward model's score keeps rising while the classifier's falls to
0.85 from 0.92 at its best.
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


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
    c.eval_rewards.gold = {"task": "reviews"}
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
