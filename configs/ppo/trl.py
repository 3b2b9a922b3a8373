"""The default settings of PPO in TRL up to 1.12 (`trl/experimental/ppo/ppo_config.py`, on `TrainingArguments`).

camelid train --config=configs/ppo/trl.py:init_from=SFT,reward=RM,source='prompts/*.jsonl' --workdir=runs/ppo
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", reward="runs/reward", source="prompts/*.jsonl", steps=1000)
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"prompts": {"source": a.source, "format": "auto", "weight": 1.0}}
    c.data.batch_size = 64  # per_device_train_batch_size in TRL's examples
    c.data.max_prompt_tokens = 512
    c.total_steps = a.steps
    c.optim.lr = 5e-5  # TrainingArguments
    c.optim.clip_norm = 1.0  # TrainingArguments.max_grad_norm
    c.schedule.name, c.schedule.final, c.schedule.warmup_percent = "linear", 0.0, 0.0
    c.rollout.max_tokens = 53  # response_length
    c.rollout.temperature = 0.7
    c.reward.sources.model = {"model": a.reward, "weight": 1.0}
    c.kl.coef, c.kl.estimator = 0.05, "k1"
    c.ppo.epochs, c.ppo.minibatches = 4, 1
    c.ppo.clip, c.ppo.value_clip, c.ppo.value_coef = 0.2, 0.2, 0.1
    c.ppo.gamma, c.ppo.lam = 1.0, 0.95
    c.ppo.whiten_rewards, c.ppo.whiten_advantages = False, True
    c.critic.init_from = a.reward
    c.critic.lr = 5e-5
    return c
