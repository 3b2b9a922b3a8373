"""DPO, or another loss of `dpo.kind`, on your own preference pairs, in any format of docs/data.md.

camelid train --config=configs/dpo/pairs.py:init_from=runs/sft,source=pairs_en.json+pairs_zh.json --workdir=runs/dpo
camelid train --config=configs/dpo/pairs.py:init_from=runs/sft,source=labelled.jsonl,kind=kto --workdir=runs/kto

`kind=kto` also learns from single answers with a `label` or `kto_tag`. Learning rate and batch are those of the DPO
paper (arXiv:2305.18290, appendix B), for models of billions of parameters. Small models need a higher learning rate, as
in primer.py.
"""

from camelid.configs.base import joined
from camelid.configs.preferences import dpo_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg, init_from="runs/sft", source="pairs.jsonl", kind="sigmoid", seq_len=512, batch_size=64, epochs=1.0, lr=1e-6
    )
    c = dpo_base()
    c.init_from = a.init_from
    c.data.mixture = joined(a.source, "pairs")
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.1
    c.total_epochs = a.epochs
    c.optim.lr = a.lr
    c.dpo.kind = a.kind
    if a.kind == "simpo":
        c.dpo.beta = 2.0
    c.eval_percent = 25.0
    return c
