"""Runs of seconds from preferences and rewards, for the tests: `tiny_rl.py:root=DIR,recipe=R,init_from=RUN`.

The recipes reward and dpo learn from DIR/pairs.jsonl; ppo, grpo and raft answer the questions of DIR/chat.jsonl.
Where `reward` is the run of a reward model, grpo learns from its score alone and ppo from that and `says_blue`; without
one all do from the latter. `kind` is that of dpo; `evaluate` false leaves evaluations out;
`lora` names adapters (`tiny_lora.py`).
"""

from camelid.configs import preferences, rl
from camelid.settings.config_files import parse_arguments
from camelid.tests.tiny_lora import put_adapters

BASES = {
    "reward": preferences.reward_base,
    "dpo": preferences.dpo_base,
    "ppo": rl.ppo_base,
    "grpo": rl.grpo_base,
    "raft": rl.raft_base,
}


def says_blue(record, answer) -> float:
    """A reward that is easily learnt, whatever was asked."""
    return float("blue" in answer)


def tens(record, answer) -> int:
    """A cost: an answer's characters, by tens."""
    return len(answer) // 10


def get_config(arg=None):
    a = parse_arguments(arg, root="", recipe="ppo", init_from=None, reward="", kind="sigmoid", evaluate=True, lora="")
    c = BASES[a.recipe]()
    c.init_from = a.init_from
    c.data.batch_size = 16
    c.data.heldout = 0.1
    c.schedule.warmup_percent = 10.0
    c.optim.lr = 3e-3
    c.log_steps = 1
    c.eval_percent = 50.0
    c.checkpoint.every_steps = 100  # the last step alone
    if a.recipe in ("reward", "dpo"):
        _learn_from_pairs(c, a)
    else:
        _learn_from_rewards(c, a)
    if not a.evaluate:
        c.data.heldout = 0.0
    put_adapters(c, a.lora)
    return c


def _learn_from_pairs(c, a):
    c.data.mixture = {"pairs": {"source": f"{a.root}/pairs.jsonl", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 64
    c.total_epochs = None
    c.total_steps = 12
    if a.recipe == "dpo":
        c.dpo.kind = a.kind
    else:
        c.calibrate.prompts = 32
        c.calibrate.max_tokens = 16


def _learn_from_rewards(c, a):
    c.data.mixture = {"chat": {"source": f"{a.root}/chat.jsonl", "format": "alpaca", "weight": 1.0}}
    c.data.max_prompt_tokens = 40
    c.data.heldout_prompts = 24
    c.rollout.max_tokens = 16
    c.total_steps = 12
    if a.recipe == "ppo" or not a.reward:
        c.reward.sources.blue = {"function": "camelid.tests.tiny_rl:says_blue"}
    if a.reward:
        c.reward.sources.proxy = {"model": a.reward, "weight": 0.5}
    if a.recipe != "ppo":
        c.rollout.n = 4
        return
    c.total_steps = 9
    c.eval_percent = 100.0
    c.data.batch_size = 8
    c.rollout.n = 2
    c.critic.lr = 3e-3
    c.ppo.epochs, c.ppo.minibatches = 2, 2
    if a.reward:  # and all else that a run may carry from step to step
        c.reward.shaping.normalise = True
        c.critic.init_from = a.reward
        c.kl.controller, c.kl.target, c.kl.horizon = "adaptive", 1.0, 100
        c.ptx.coef = 0.1
        c.ptx.mixture = {"text": {"source": f"{a.root}/text.jsonl", "format": "auto", "weight": 1.0}}
        c.ptx.batch_size, c.ptx.seq_len, c.ptx.cache_dir = 8, 32, f"{a.root}/cache"
        c.cost.source = {"function": "camelid.tests.tiny_rl:tens"}
        c.cost.threshold, c.cost.multiplier_init, c.cost.lr = 1.0, 0.2, 0.05
        c.ema_decay = 0.8
