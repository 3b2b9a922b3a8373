"""Adapts an existing model to a field: continued pretraining on documents, then tuning on questions and answers.

    camelid train --workdir=runs/field \\
        --config=configs/adapt/domain.py:init_from=model.gguf,documents=field/documents,questions=field/questions.json,general=general.jsonl
    camelid chat runs/field/questions

The two phases are those of Don't Stop Pretraining (arXiv:2004.10964, section 3) and LMFlow. The first trains on
`documents`, folders or globs of text, and writes runs/field/documents. The second goes on from there with `questions`,
conversations in any format, and writes runs/field/questions. Held-out parts of both, and all of the `general` text, are
evaluated before, between and after the phases: the table at the end shows what was learnt and what was forgotten.

`rank` is that of low-rank adapters, which both phases train; rank=0 trains all parameters. `replay` mixes general text
into both phases against forgetting, with this weight beside 1 for the phase's own source; only a held-out part of it is
then evaluated. A base model without a chat template needs one: `template=chatml`.
"""

from camelid.configs.base import base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="",
        documents="",
        questions="",
        general=None,
        template=None,
        rank=16,
        lr=0.0,  # 0: 2e-4 for adapters, 2e-5 for all parameters
        document_epochs=1.0,
        question_epochs=1.0,
        replay=0.0,
        seq_len=512,
        batch_size=8,
        heldout=0.05,
        dtype="float32",
    )
    c = base()
    c.init_from = a.init_from
    c.template = a.template
    c.model.dtype = a.dtype
    if a.rank:
        c.lora.targets = [(r"layers/(attention|mlp)/.*", a.rank)]
        c.lora.alpha = 2.0 * a.rank
    c.data.mixture.documents = {"source": a.documents, "format": "auto", "weight": 0.0}
    c.data.mixture.questions = {"source": a.questions, "format": "auto", "weight": 0.0}
    if a.general is not None:
        share = a.heldout if a.replay else 1.0
        c.data.mixture.general = {"source": a.general, "format": "auto", "weight": a.replay, "heldout": share}
    c.data.heldout = a.heldout
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.optim.lr = a.lr or (2e-4 if a.rank else 2e-5)
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 5.0
    c.log_steps = 5
    c.eval_percent = 50.0
    c.phases = [
        (
            "documents",
            {
                "recipe": "pretrain",
                "data.packing": "contiguous",
                "data.mixture.documents.weight": 1.0,
                "total_epochs": a.document_epochs,
            },
        ),
        (
            "questions",
            {
                "recipe": "sft",
                "data.packing": "best_fit",
                "data.mixture.questions.weight": 1.0,
                "total_epochs": a.question_epochs,
            },
        ),
    ]
    return c
