"""Direct preference optimisation for the primer, on pairs of a tuned model's own answers.

camelid data collect runs/sft --source=primer:chat --reward=primer \\
    --output=runs/pairs.jsonl
camelid train --config=configs/dpo/primer.py:init_from=runs/sft,pairs=runs/pairs.jsonl --workdir=runs/dpo
"""

from camelid.configs.preferences import dpo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/sft", pairs="runs/pairs.jsonl", kind="sigmoid", steps=200)
    c = dpo_base()
    c.init_from = a.init_from
    c.data.mixture = {"pairs": {"source": a.pairs, "format": "auto", "weight": 1.0}}
    c.data.seq_len = 64
    c.data.batch_size = 32
    c.total_epochs = None
    c.total_steps = a.steps
    c.optim.lr = 2e-4
    c.dpo.kind = a.kind
    if a.kind == "simpo":
        c.dpo.beta = 2.0
    c.eval_percent = 25.0
    c.evals.primer = {"per_group": 10, "max_tokens": 24, "shown": 1}
    return c
