"""Every setting of learning from rewards, with its default and where that comes from.

OpenAI: "Learning to summarize from human feedback", arXiv:2009.01325, and the line of arXiv:1909.08593 before it.
InstructGPT: arXiv:2203.02155. ColossalChat, TRL: the code of their PPO (the `configs/ppo` of those names).
"""

from ml_collections import ConfigDict

from camelid.configs.base import base


def rl_base() -> ConfigDict:
    """What PPO, GRPO and their relatives share."""
    c = base()
    for name in ("seq_len", "packing", "cache_dir"):
        del c.data[name]
    del c.z_loss, c.eval_batches, c.lisa
    c.total_steps = 200
    c.log_steps = 1
    c.data.batch_size = 64  # prompts in a step
    c.data.max_prompt_tokens = 128  # longer ones are left out and counted
    c.data.heldout_prompts = 64  # that evaluations answer
    c.eval_rows = 4  # of the answers that each evaluation shows
    c.optim.lr = 1e-5
    c.optim.weight_decay = 0.0
    c.optim.b2 = 0.999  # 0.95 is for pretraining; Adam's own in all of the above
    c.schedule.name = "linear"
    c.schedule.final = 0.0
    c.guard.spike_sigma = None  # a policy's loss has no level that it should keep
    c.guard.max_streak = 1

    c.rollout = ConfigDict()
    c.rollout.max_tokens = 128
    c.rollout.temperature = 1.0
    c.rollout.n = 1  # answers to each prompt
    c.rollout.stop = ()  # strings that end an answer, as the end of a turn does; rewards see the text before them
    c.rollout.score_parts = 1  # parts in which answers are scored one after the other, to save memory

    c.reward = ConfigDict()
    c.reward.sources = (
        ConfigDict()
    )  # {"model": path}, {"task": name} or {"function": "package.module:name"}, each with a weight
    c.reward.shaping = ConfigDict()
    c.reward.shaping.normalise = False
    c.reward.shaping.clip = None
    c.reward.shaping.missing_eos = None  # the score of an answer that does not end
    c.reward.shaping.length_penalty = 0.0  # for each token

    c.judges = ConfigDict()  # further sources, by which evaluations score answers and nothing learns

    c.watch = ConfigDict()  # what stops a run: rlhf/watch.py
    c.watch.ratio_tolerance = None
    c.watch.min_eos_rate = 0.02
    c.watch.patience = 20
    c.watch.proxy = None
    c.watch.gold = None
    c.watch.patience_evaluations = 3
    return c


def ppo_base() -> ConfigDict:
    c = rl_base()
    c.recipe = "ppo"

    c.kl = ConfigDict()
    c.kl.coef = 0.05  # OpenAI, TRL
    c.kl.estimator = "k1"  # k2, k3, exact
    c.kl.controller = "fixed"  # adaptive
    c.kl.target = 6.0  # nats an answer: arXiv:1909.08593, section 2.2
    c.kl.horizon = 10_000  # answers: the same place

    c.ppo = ConfigDict()
    c.ppo.epochs = 4  # OpenAI, TRL
    c.ppo.minibatches = 1  # OpenAI: appendix B.1; TRL 1
    c.ppo.clip = 0.2  # arXiv:1707.06347, table 1
    c.ppo.value_clip = 0.2  # OpenAI, TRL
    c.ppo.value_coef = 0.1  # OpenAI, TRL
    c.ppo.entropy_coef = 0.0
    c.ppo.gamma = 1.0  # OpenAI, TRL
    c.ppo.lam = 0.95  # OpenAI, TRL
    c.ppo.whiten_rewards = False
    c.ppo.whiten_advantages = True  # OpenAI, TRL
    c.ppo.target_kl = None

    c.critic = ConfigDict()
    c.critic.shared = False  # a head on the policy instead of a network of its own
    c.critic.init_from = None  # the reward model (OpenAI, InstructGPT); None: init_from
    c.critic.lr = 1e-5
    c.critic.first_steps = 0  # in which only the critic learns

    c.ptx = ConfigDict()  # text in every minibatch, so that the policy forgets less (InstructGPT's PPO-ptx)
    c.ptx.coef = 0.0  # InstructGPT 27.8 a sequence of the sum over tokens; here of the mean over tokens
    c.ptx.mixture = ConfigDict()
    c.ptx.batch_size = 64
    c.ptx.seq_len = 128
    c.ptx.packing = "best_fit"
    c.ptx.cache_dir = "~/.cache/camelid"

    c.cost = ConfigDict()  # a constraint (Safe RLHF, arXiv:2310.12773)
    c.cost.source = None  # as those of reward.sources; above 0 is unsafe
    c.cost.threshold = 0.0
    c.cost.first = 1.0  # the multiplier
    c.cost.lr = 0.1
    c.cost.most = 10.0
    return c


def grpo_base() -> ConfigDict:
    c = rl_base()
    c.recipe = "grpo"
    c.optim.lr = 1e-6  # DeepSeekMath (arXiv:2402.03300, section 4.2), DAPO (arXiv:2503.14476, section 4.1)
    c.rollout.n = 8  # TRL; DeepSeekMath 64, DAPO 16
    c.data.batch_size = 16

    c.grpo = ConfigDict()
    c.grpo.advantage = "grpo"  # dr_grpo, rloo
    c.grpo.epochs = 1  # DeepSeekMath, TRL
    c.grpo.minibatches = 1
    c.grpo.clip = 0.2
    c.grpo.clip_high = None  # DAPO 0.28
    c.grpo.aggregate = "sequence"  # token (DAPO), constant (Dr. GRPO, arXiv:2503.20783)
    c.grpo.kl_coef = 0.04  # DeepSeekMath; DAPO and Dr. GRPO 0
    c.grpo.kl_estimator = "k3"  # DeepSeekMath, equation 4
    c.grpo.kl_in = "loss"  # reward: RLOO (arXiv:2402.14740)
    c.grpo.drop_even = False  # DAPO's dynamic sampling
    c.grpo.overlong = 0  # tokens; DAPO 4,096 of 20,480
    c.grpo.target_kl = None
    return c


def raft_base() -> ConfigDict:
    c = rl_base()
    c.recipe = "raft"
    c.optim.lr = 2e-5  # arXiv:2304.06767, section 4.1
    c.rollout.n = 8
    c.rollout.temperature = 0.85  # the same place
    c.data.batch_size = 64
    c.raft = ConfigDict()
    c.raft.epochs = 2  # the same place
    c.raft.minibatches = 1
    return c
