"""LLaMA's pretraining: its mixture, batch, optimiser and schedule (arXiv:2302.13971, tables 1 and 2).

    camelid train --config=configs/pretrain/llama.py:size=7b,root=gs://bucket/llama --workdir=gs://bucket/llama-7b

Sources are globs below `root`, one folder each; camelid does not ship or clean this data. A batch has 4 M tokens. The
total is 1.0 T tokens for 7b and 13b, 1.4 T for 33b and 65b. It needs a pod, and has not been run to its end. Slices of
TPU v5p for it are 4 x 4 x 8 chips for 7b, 4 x 8 x 8 for 13b, 8 x 8 x 8 for 33b and 65b (docs/scaling.md):

    camelid plan --config=configs/pretrain/llama.py:size=65b --topology=v5p:8x8x8
"""

from camelid.configs.base import base
from camelid.errors import UserError
from camelid.settings.config_files import parse_arguments

# name: (share of the batches in percent, glob below root)
MIXTURE = {
    "commoncrawl": (67.0, "commoncrawl/*.jsonl.gz"),
    "c4": (15.0, "c4/*.json.gz"),
    "github": (4.5, "github/*.jsonl.gz"),
    "wikipedia": (4.5, "wikipedia/*.jsonl.gz"),
    "books": (4.5, "books/*.jsonl.gz"),
    "arxiv": (2.5, "arxiv/*.jsonl.gz"),
    "stackexchange": (2.0, "stackexchange/*.jsonl.gz"),
}
# size: (learning rate, tokens)
SIZES = {"7b": (3e-4, 1.0e12), "13b": (3e-4, 1.0e12), "33b": (1.5e-4, 1.4e12), "65b": (1.5e-4, 1.4e12)}


def get_config(arg=None):
    a = parse_arguments(arg, size="7b", root="data/llama", tokenizer="data/llama/tokenizer.model")
    if a.size not in SIZES:
        raise UserError(f"size={a.size}: give one of {', '.join(SIZES)}")
    lr, tokens = SIZES[a.size]
    c = base()
    c.recipe = "pretrain"
    c.model.preset = f"llama-{a.size}"
    c.model.dtype = "bfloat16"
    c.model.remat = "attention,gate,up"  # what fits beside the state on these slices, for the fewest FLOPs
    c.tokenizer = a.tokenizer
    c.data.mixture = {
        name: {"source": f"{a.root}/{files}", "format": "text", "weight": share}
        for name, (share, files) in MIXTURE.items()
    }
    c.data.seq_len = 2048
    c.data.batch_size = 2048  # 4 M tokens
    c.data.heldout = 1e-5
    c.total_tokens = tokens
    c.optim.lr = lr
    c.schedule.warmup_percent = None
    c.schedule.warmup_steps = 2000
    c.eval_percent = None
    c.eval_steps = 1000
    c.checkpoint.keep_every = 10_000
    return c
