"""Trains a model whose vocabulary has grown to use the new tokens: first embedding and head alone, then all parameters.

    camelid tokenizer merge model.gguf --source='chinese/*.txt' --pieces=4000 --characters=chinese --output=grown
    camelid convert model.gguf runs/grown --tokenizer=grown
    camelid train --config=configs/adapt/vocabulary.py:init_from=runs/grown,source=chinese,general=english.jsonl \\
        --workdir=runs/chinese
    camelid eval runs/chinese/everything --source=chinese --split=heldout --heldout=0.05

The two phases are those of Chinese-LLaMA (arXiv:2304.08177, section 3). `embeddings` trains embedding and head alone.
`everything` trains all parameters, or with `rank` embedding, head and low-rank adapters on all other matrices.
`general` is text in the languages that the model knew before. It is evaluated, and with `replay` it is trained on too,
with this weight beside 1 for `source`. The losses of two vocabularies cannot be compared: compare bits_per_character,
which `camelid eval model.gguf --source=...` gives for the model before.
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="",
        source="",
        general=None,
        rank=0,
        embeddings_lr=1e-3,
        lr=2e-4,
        embeddings_epochs=0.5,
        epochs=1.0,
        replay=0.0,
        seq_len=512,
        batch_size=8,
        heldout=0.05,
        dtype="float32",
    )
    c = base()
    c.recipe = "pretrain"
    c.init_from = a.init_from
    c.model.dtype = a.dtype
    c.data.mixture.new = {"source": a.source, "format": "auto", "weight": 1.0}
    if a.general is not None:
        share = a.heldout if a.replay else 1.0
        c.data.mixture.general = {"source": a.general, "format": "auto", "weight": a.replay, "heldout": share}
    c.data.heldout = a.heldout
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 5.0
    c.eval_percent = 25.0
    embeddings = {
        "optim.frozen": [(r"(embed|head)/.*", False), (r".*", True)],
        "optim.lr": a.embeddings_lr,
        "total_epochs": a.embeddings_epochs,
    }
    everything = {"optim.lr": a.lr, "total_epochs": a.epochs}
    if a.rank:
        everything |= {
            "lora.targets": [(r"layers/(attention|mlp)/.*", a.rank)],
            "lora.alpha": 2.0 * a.rank,
            "lora.whole": [r"(embed|head)/.*"],
        }
    c.phases = [("embeddings", embeddings), ("everything", everything)]
    return c
