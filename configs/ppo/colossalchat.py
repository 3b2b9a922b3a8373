"""The settings of ColossalChat's PPO (`coati/trainer/ppo.py` and `train_ppo.sh`), without its defects.

Two things differ. ColossalChat filters rollouts by top-k and top-p, whose probabilities no update can follow; here
answers are drawn from the whole distribution. Its loss, (1 - c) policy + c text, is written as policy + coef text.

    camelid train --config=configs/ppo/colossalchat.py:init_from=SFT,reward=RM,source='prompts/*.jsonl' \\
        --workdir=runs/ppo

Policy, critic, reference and reward model of 7B fit on 8 A100 of 80 GB (docs/scaling.md):

    camelid plan --config=configs/ppo/colossalchat.py:dtype=bfloat16 --architecture=llama-7b --topology=a100-80gb:8
"""

from camelid.configs.rl import ppo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="runs/sft",
        reward="runs/reward",
        source="prompts/*.jsonl",
        text="",
        steps=1000,
        dtype="float32",
    )
    c = ppo_base()
    c.init_from = a.init_from
    c.model.dtype = a.dtype
    c.model.remat = "attention"
    c.data.mixture = {"prompts": {"source": a.source, "format": "auto", "weight": 1.0}}
    c.data.batch_size = 64  # 8 devices x experience_batch_size 4 x num_collect_steps 2
    c.data.max_prompt_tokens = 256
    c.total_steps = a.steps  # num_episodes 2000 / num_collect_steps 2
    c.optim.lr = 9e-6
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 0.1
    c.schedule.name, c.schedule.final = "cosine", 0.1
    c.schedule.warmup_percent = None
    c.schedule.warmup_steps = 40
    c.rollout.max_tokens = 256
    c.reward.sources.model = {"model": a.reward, "weight": 1.0}
    c.kl.coef = 0.1
    c.ppo.epochs = 1  # num_update_steps
    c.ppo.minibatches = 1  # train_batch_size 4 x 8 devices x accumulation_steps 2
    c.ppo.clip, c.ppo.value_clip, c.ppo.value_coef = 0.2, 0.2, 1.0
    c.ppo.gamma, c.ppo.lam = 1.0, 0.95
    c.ppo.whiten_advantages = False
    c.critic.init_from = a.reward
    c.critic.lr = 9e-6
    if a.text:
        c.ptx.coef = 9.0  # ptx_coef 0.9: 0.9 / (1 - 0.9)
        c.ptx.mixture = {"text": {"source": a.text, "format": "auto", "weight": 1.0}}
    return c
