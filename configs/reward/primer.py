"""A reward model for the primer, from pairs of a tuned model's own answers, labelled by the primer's score with noise.

camelid data collect runs/sft --source=primer:chat --reward=primer \\
    --output=runs/pairs.jsonl
camelid train --config=configs/reward/primer.py:init_from=runs/sft,pairs=runs/pairs.jsonl --workdir=runs/reward
"""

from camelid.configs.preferences import reward_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="runs/sft",
        pairs="runs/pairs.jsonl",
        steps=160,
        max_pairs=2600,
        noise=0.1,
        synthetic=True,
        rank=0,
    )
    c = reward_base()
    c.init_from = a.init_from
    c.data.mixture = {"own": {"source": a.pairs, "format": "auto", "weight": 1.0}}
    if a.synthetic:
        c.data.mixture.primer = {"source": "primer:pairs", "format": "auto", "weight": 1.0}
    c.data.noise = a.noise
    c.data.seq_len = 64
    c.data.batch_size = 32
    c.data.max_pairs = a.max_pairs or None
    c.total_epochs = None
    c.total_steps = a.steps
    c.optim.lr = 2e-4
    if a.rank:
        c.lora.targets = [(r"layers/(attention|mlp)/.*", a.rank)]
        c.lora.alpha = 2.0 * a.rank
        c.optim.lr = 10 * c.optim.lr
    c.objective.centering = 0.01
    c.calibrate.prompts = 256
    c.calibrate.max_tokens = 24
    c.eval_percent = 50.0
    c.eval_batches = 16
    return c
