"""The settings of "Learning to summarize from human feedback" (arXiv:2009.01325, appendix B.1, the 1.3B model).

Settings that the paper does not give are those of its replication (arXiv:2403.17031, "N+").

camelid train --config=configs/ppo/openai_summarization.py:init_from=SFT,reward=RM,source='posts/*.jsonl' \\
    --workdir=runs/ppo
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", reward="runs/reward", source="posts/*.jsonl")
    c = ppo_base()
    c.init_from = a.init_from
    c.data.mixture = {"prompts": {"source": a.source, "format": "auto", "weight": 1.0}}
    c.data.batch_size = 512  # B.1
    c.data.max_prompt_tokens = 512  # B.1: a post of at most 512 tokens
    c.total_steps = 1_000_000 // 512  # B.1: a million answers
    c.optim.lr = 1.5e-5  # B.1
    c.optim.eps = 1e-5  # N+, detail 19
    c.optim.clip_norm = None  # the gradient is not clipped
    c.schedule.name, c.schedule.final = "linear", 0.0  # B.1
    c.schedule.warmup_percent = 0.0
    c.rollout.max_tokens = 53  # N+; 48 in the paper
    c.rollout.temperature = 0.7  # N+
    c.reward.sources.model = {"model": a.reward, "weight": 1.0}
    c.reward.shaping.missing_eos = -1.0  # N+, the EOS trick
    c.kl.coef = 0.05  # B.1
    c.kl.estimator, c.kl.controller = "k1", "fixed"
    c.ppo.epochs = 4  # B.1
    c.ppo.minibatches = 1  # N+
    c.ppo.clip, c.ppo.value_clip, c.ppo.value_coef = 0.2, 0.2, 0.1  # N+
    c.ppo.gamma, c.ppo.lam = 1.0, 0.95  # B.1
    c.ppo.whiten_rewards, c.ppo.whiten_advantages = False, True  # N+
    c.critic.init_from = a.reward  # B.1: a separate network that starts from the reward model
    c.critic.lr = 1.5e-5
    return c
