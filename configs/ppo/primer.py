"""PPO on the primer's instructions against a reward model that was trained on noisy comparisons.

camelid train --config=configs/ppo/primer.py:init_from=runs/sft,reward=runs/reward --workdir=runs/ppo

As the last stage of `make quickstart` it takes the score of answers drawn at temperature 1 from 0.29 to 0.54 (English
0.25 to 0.46, Chinese 0.34 to 0.63).

With `rank=16`, here and for the reward model, policy, critic and reward model are adapters on one base, the tuned
model, which is also the reference.
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", reward="runs/reward", steps=24, rank=0)
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"primer": {"source": "primer:chat", "format": "auto", "weight": 1.0}}
    c.data.batch_size = 256
    c.data.max_prompt_tokens = 48
    c.data.heldout_prompts = 256
    c.rollout.max_tokens = 24
    c.reward.sources.proxy = {"model": a.reward, "weight": 1.0}
    c.reward.shaping.missing_eos = -2.0
    c.critic.init_from = a.reward
    c.critic.lr = 1e-3
    c.critic.first_steps = 3
    c.optim.lr = 1.5e-4
    c.kl.coef = 0.05
    c.ppo.epochs = 1
    c.ppo.minibatches = 8
    c.total_steps = a.steps
    if a.rank:
        c.lora.targets = [(r"layers/(attention|mlp)/.*", a.rank)]
        c.lora.alpha = 2.0 * a.rank
        c.optim.lr, c.critic.lr = 1e-3, 5e-3
    c.eval_percent = 50.0
    c.evals.primer = {"per_group": 10, "max_tokens": 24, "shown": 1}
    c.eval_rewards.gold = {"task": "primer"}
    c.watch.proxy, c.watch.gold = "eval/heldout/scores", "eval/heldout/scores/gold"
    return c
