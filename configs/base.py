"""Every setting of a supervised run, with its default. An experiment's file starts here and changes what it is about.

Lengths of time come in units, one of which is set: `_steps`, `_epochs` (of the whole mixture), `_tokens`, `_percent`
(of the total).
"""

from ml_collections import ConfigDict

from camelid.train.settings import split_escaped


def joined(sources: str, name: str = "source") -> dict:
    """A mixture of the sources that plus signs join, called name0, name1, ..., of weight 1 each; `\\+` is a plus sign
    in a source."""
    return {
        f"{name}{i}": {"source": source, "format": "auto", "weight": 1.0}
        for i, source in enumerate(split_escaped(sources, "+"))
    }


def base() -> ConfigDict:
    c = ConfigDict()
    c.recipe = "pretrain"  # or "sft"
    c.phases = None  # [(name, {"optim.lr": 1e-4, ...})]: runs one after the other, and what each changes
    c.seed = 0

    # What is trained. The architecture is a preset, or that of the checkpoint whose parameters the run starts from.
    c.model = ConfigDict()
    c.model.preset = None  # a key of model/config.py PRESETS
    c.model.dtype = "float32"  # of the computation; bfloat16 where the hardware has it
    c.model.param_dtype = "float32"
    c.model.attention = "auto"  # xla, splash (TPU), cudnn (GPU)
    c.model.remat = "none"  # dots, attention, full, offload: what a layer keeps for its backward pass
    for field in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "tied", "norm_eps", "unroll"):
        c.model[field] = None  # another value than the preset's or the checkpoint's
    c.model.vocab_size = None  # rows of embedding and head; beyond those of init_from's files: the mean of theirs
    for field in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm", "window", "attention_scale", "family"):
        c.model[field] = None  # what other families than LLaMA add, see model/config.py LlamaConfig
    for field in ("embedding_multiplier", "residual_multiplier", "logit_divisor"):
        c.model[field] = None
    c.model.max_len = None
    c.model.rope_theta = None
    c.model.rope_scaling = None  # {"kind": "linear", "factor": 4.0}, see model/config.py RopeScaling
    c.init_from = None  # path of a run or checkpoint
    c.init_weights = None  # params, or ema, the moving average; None: ema where the run of init_from kept one
    c.tokenizer = None  # path; None: that of init_from
    c.template = None  # chat template: alpaca, vicuna, chatml, llama2, llama3, or a jinja file; None: init_from's

    # Low-rank adapters on a base that stays as it is: checkpoints hold these alone.
    c.lora = ConfigDict()
    c.lora.targets = None  # [(regex, rank)], such as [(r"layers/(attention|mlp)/.*", 16)]; None: no adapters
    c.lora.alpha = 16.0
    c.lora.rank_stabilized = False  # alpha / sqrt(rank) instead of alpha / rank
    c.lora.dora = False  # a magnitude for each output learns too
    c.lora.init = "zero"  # pissa: principal components
    c.lora.quantize = None  # the base: int8, int4, nf4 (QLoRA), stored (as a GGUF file has it), or [(regex, kind)]
    c.lora.dropout = 0.0  # of adapters' inputs
    c.lora.whole = None  # [regex] of parameters trained whole beside the adapters

    # Layers that learn, where not all do, beside embedding, final norm and head.
    c.lisa = ConfigDict()
    c.lisa.layers = None  # how many, drawn anew for each period (LISA), or which, such as [-2, -1]; None: all
    c.lisa.period_steps = None  # of as many layers' turn

    # What it is trained on. Each source of the mixture: {source, format, weight}; one of weight 0 is only measured.
    c.data = ConfigDict()
    c.data.mixture = ConfigDict()
    c.data.seq_len = 512
    c.data.batch_size = 32  # rows over all hosts
    c.data.packing = "contiguous"  # best_fit keeps samples whole, fewest_cuts cuts those longer than a row
    c.data.heldout = 0.01  # share of each source kept for evaluation; a source's own `heldout` goes first
    c.data.on_error = "raise"  # skip counts and lists bad records
    c.data.max_record_bytes = 2**26  # a longer line, record or row is a bad one
    c.data.cache_dir = "~/.cache/camelid"

    # How long.
    c.total_steps = None
    c.total_epochs = None
    c.total_tokens = None

    # How.
    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw8bit, adafactor, lion, muon
    c.optim.lr = 3e-4
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0
    c.optim.accumulate = 1  # parts of a batch that are computed one after the other
    c.optim.decay = None  # [(regex, bool)]; None: all but the norms
    c.optim.lr_multipliers = None  # [(regex, float)]
    c.optim.frozen = None  # [(regex, bool)]
    c.optim.offload = False  # adamw, adamw8bit, lion: moments stay in the host's memory, and come layer by layer
    for argument in ("b1", "b2", "eps", "momentum", "ns_steps", "decay_rate", "clipping_threshold"):
        c.optim[argument] = None  # the optimiser's own default (train/optimizer.py DEFAULTS)
    c.schedule = ConfigDict()
    c.schedule.name = "cosine"  # linear, wsd, constant
    c.schedule.warmup_steps = None
    c.schedule.warmup_percent = 2.0
    c.schedule.final = 0.1
    c.schedule.decay_percent = None  # wsd's descent
    c.ema_decay = None
    c.z_loss = 0.0
    c.guard = ConfigDict()
    c.guard.spike_sigma = 10.0  # a loss this many deviations above the running mean is skipped; None: never
    c.guard.warmup_steps = 50
    c.guard.max_streak = 20  # skips in a row that stop the run

    # Where.
    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, context=1))
    c.partition_rules = None  # [(regex, axes)]; None: model/sharding.py PARTITION_RULES

    # What is told and kept.
    c.log_steps = 20
    c.eval_percent = 10.0
    c.eval_steps = None
    c.eval_batches = 16
    c.evals = ConfigDict()  # further evaluations: a section of arguments for each name
    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = None  # or one of the others; all None: every tenth of the run
    for unit in ("percent", "epochs", "tokens", "seconds"):
        c.checkpoint[f"every_{unit}"] = None
    c.checkpoint.keep_last = 2
    c.checkpoint.keep_every = None  # steps that are kept for ever
    c.checkpoint.best = None  # ("eval/heldout/text/loss", "min"): the best by this metric is kept too
    c.wandb = None  # name of the run on Weights & Biases
    c.profile = ConfigDict(dict(at_step=None, n_steps=3))
    return c
