"""Every setting of a reward model's run (`recipe = "reward"`) and of direct preference optimisation, with defaults."""

from ml_collections import ConfigDict

from camelid.configs.base import base


def pairs_base() -> ConfigDict:
    """What all runs on preference pairs share."""
    c = base()
    del c.data.packing, c.data.cache_dir, c.z_loss, c.lisa
    c.data.heldout = 0.05
    c.data.noise = 0.0  # share of the training pairs whose sides are exchanged
    c.data.max_pairs = None  # read only the first so many pairs, or labelled answers, of each source
    c.data.batch_size = 64  # pairs: InstructGPT (arXiv:2203.02155, appendix C.2)
    c.optim.lr = 9e-6  # the same place, for 6B
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 3.0
    c.total_epochs = 1.0  # more overfit: the same place
    return c


def reward_base() -> ConfigDict:
    c = pairs_base()
    c.recipe = "reward"
    c.data.sides = 2  # answers to a prompt; more: the pairs' meta.others
    c.heads = 1  # of an ensemble
    c.pessimism = 0.0  # an ensemble's score is mean - pessimism * deviation (arXiv:2310.02743)
    c.objective = ConfigDict()
    c.objective.kind = "reward"  # cost: from what is safer and what is unsafe (arXiv:2310.12773)
    c.objective.form = "log_sigmoid"  # log_exp, as ColossalChat writes it; best_of_k
    c.objective.margin = 0.0  # times the pairs' margins; Llama 2 (arXiv:2307.09288, section 3.2.2) uses 1
    c.objective.centering = 0.0  # arXiv:2312.09244 uses 0.01
    c.objective.bootstrap = False  # each head weighs pairs differently
    c.normalise = ConfigDict()  # the reference's answers to held-out prompts score mean 0, deviation 1
    c.normalise.prompts = 512  # 0: scores stay as they are
    c.normalise.max_tokens = 128
    c.normalise.temperature = 1.0
    return c


def dpo_base() -> ConfigDict:
    c = pairs_base()
    c.recipe = "dpo"
    c.optim.lr = 1e-6  # arXiv:2305.18290, appendix B
    c.schedule.name = "linear"
    c.schedule.final = 0.0
    c.dpo = ConfigDict()
    c.dpo.kind = "sigmoid"  # robust, hinge, ipo, kto (from labelled answers too), simpo, orpo: rlhf/dpo.py
    c.dpo.beta = 0.1  # the same place; SimPO 2 to 10, ORPO 0.1
    c.dpo.label_smoothing = 0.0
    c.dpo.gamma = 0.5  # SimPO's margin (arXiv:2405.14734: 0.3 to 1.6)
    c.dpo.desirable_weight = 1.0
    c.dpo.undesirable_weight = 1.0
    return c
