"""The sections of every config, with the type and range of each leaf (`leaves`); `configs/base.py` has the defaults."""

from collections.abc import Mapping
from typing import Annotated, Any

from ..data.formats import FORMATS
from ..data.json_values import shown
from ..data.templates import load_template
from ..errors import UserError
from ..model.attention import IMPLEMENTATIONS
from ..model.config import PRESETS, FamilyName, RopeKind
from ..model.llama import REMAT
from ..model.lora import INITS
from ..model.sharding import AXES
from ..model.storage import MATRICES
from .leaves import (
    Count,
    Duration,
    NotNegative,
    OneOf,
    Only,
    Path,
    Positive,
    Range,
    Regex,
    Share,
    Unset,
    Whole,
)
from .optimizer import DEFAULTS, OFFLOADED, SCHEDULES, SMALLEST_EPS
from .trainable import check_period

DTYPES = OneOf("float32", "bfloat16")
"""Of what trains. In float16 gradients vanish unless losses are scaled, which nothing here does."""

Axis = Annotated[str, OneOf(*AXES)]
Factors = list[Positive] | None
OnError = Annotated[str, OneOf("raise", "skip")]
Packing = Annotated[str, OneOf("contiguous", "best_fit", "fewest_cuts")]
RowLength = Annotated[int, Range(least=2, most=2**24)]
Rows = Annotated[int, Range(least=1, most=2**24)]


class RopeScaling:
    """`config.model.rope_scaling`: the fields of `model.config.RopeScaling`, which has the rest of the rules."""

    kind: Annotated[str, OneOf(*RopeKind.__args__)]
    factor: Annotated[float, Range(least=1)] | None = None
    original_max_len: Count | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    attention_factor: Positive | None = None
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    truncate: bool = True
    short_factors: Factors = None
    long_factors: Factors = None


class Model:
    """`config.model`: what is None is the preset's or the checkpoint's."""

    preset: Annotated[str, OneOf(*PRESETS)] | None
    dtype: Annotated[str, DTYPES]
    param_dtype: Annotated[str, DTYPES]
    attention: Annotated[str, OneOf(*IMPLEMENTATIONS)]
    remat: Annotated[str, OneOf(*REMAT)]
    dim: Rows | None
    n_layers: Annotated[int, Range(least=1, most=10_000)] | None
    n_heads: Rows | None
    n_kv_heads: Rows | None
    head_dim: Rows | None
    ffn_dim: Rows | None
    tied: bool | None
    norm_eps: Positive | None
    unroll: Count | None
    max_len: Annotated[int, Range(least=1, most=2**30)] | None
    rope_theta: Annotated[float, Range(least=1)] | None
    rope_scaling: RopeScaling | None
    vocab_size: Rows | None = None
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: bool | None = None
    window: Count | None = None
    attention_scale: Positive | None = None
    embedding_multiplier: Positive | None = None
    residual_multiplier: Positive | None = None
    logit_divisor: Positive | None = None
    family: Annotated[str, OneOf(*FamilyName.__args__)] | None = None


class Lora:
    """`config.lora`."""

    targets: Annotated[list[tuple[Regex, Whole]] | None, Unset("no adapters")]
    alpha: Annotated[Positive, Only("targets", default=16.0)]
    rank_stabilized: Annotated[bool, Only("targets", default=False)]
    dora: Annotated[bool, Only("targets", default=False)]
    init: Annotated[str, OneOf(*INITS), Only("targets", default="zero")]
    quantize: Annotated[
        Annotated[str, OneOf(*MATRICES)] | list[tuple[Regex, str | None]] | None, Only("targets"), Unset("as it is")
    ]
    dropout: Annotated[float, Range(least=0, below=1), Only("targets", default=0.0)]
    whole: Annotated[list[Regex] | None, Only("targets")]


class Lisa:
    """`config.lisa`."""

    layers: Annotated[Count | list[Annotated[int, Range()]] | None, Unset("all layers")]
    period: Annotated[float, Duration(("steps", "epochs", "tokens", "percent"), required=False, least=1)]

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        layers = values["layers"]
        if layers is not None and not isinstance(layers, int) and len(layers) == 0:
            raise UserError(f"{where}.layers = {shown(layers)}: name at least one layer, or give None for all")
        given = [x for name, x in values.items() if name.startswith("period_") and x is not None]
        check_period(layers, given[0] if given else None)


class Source:
    """An entry of a mixture. heldout: its own share; the section's where it is left out."""

    source: Path
    format: Annotated[str, OneOf("auto", *FORMATS)] = "auto"
    weight: NotNegative
    heldout: Share = 0.0


class Data:
    """`config.data` of text and conversations in packed rows."""

    mixture: dict[str, Source]
    seq_len: RowLength
    batch_size: Rows
    packing: Packing
    heldout: Annotated[float, Range(least=0, below=1)]
    on_error: OnError
    max_record_bytes: Count = 2**26
    cache_dir: Path

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        if not any(source["weight"] for source in values["mixture"].values()):
            raise UserError(f"{where}.mixture: name at least one source with a weight above 0, to train on")


def _argument(name: str) -> Only:
    """Of the optimisers that take the argument."""
    return Only("name", *(optimizer for optimizer, taken in DEFAULTS.items() if name in taken))


class Optim:
    """`config.optim`. Arguments that are None are the optimiser's own defaults."""

    name: Annotated[str, OneOf(*DEFAULTS)]
    lr: Annotated[float, Range(least=0, most=100)]
    weight_decay: Annotated[float, Range(least=0, most=1000)]
    clip_norm: Annotated[Positive | None, Unset("no clipping")]
    accumulate: Count
    decay: list[tuple[Regex, bool]] | None
    lr_multipliers: list[tuple[Regex, Annotated[float, Range(least=0, most=1e6)]]] | None
    frozen: list[tuple[Regex, bool]] | None
    offload: Annotated[bool, Only("name", *OFFLOADED, default=False)]
    b1: Annotated[float | None, Range(least=0, below=1), _argument("b1")]
    b2: Annotated[float | None, Range(least=0, below=1), _argument("b2")]
    eps: Annotated[float | None, Range(above=0, most=1), _argument("eps")]
    momentum: Annotated[float | None, Range(least=0, below=1), _argument("momentum")]
    ns_steps: Annotated[int | None, Range(least=1, most=100), _argument("ns_steps")]
    decay_rate: Annotated[float | None, Range(above=0, most=1), _argument("decay_rate")]
    clipping_threshold: Annotated[float | None, Range(above=0), _argument("clipping_threshold")]

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        eps = values["eps"]
        if eps is not None and eps < SMALLEST_EPS and values["name"] != "adafactor":
            raise UserError(
                f"{where}.eps = {shown(eps)}: give {values['name']} at least {SMALLEST_EPS:g}: the roots of second "
                "moments are 0 in float32 soon below that"
            )


class Schedule:
    """`config.schedule`. final: the last learning rate as a share of the highest."""

    name: Annotated[str, OneOf(*SCHEDULES)]
    warmup: Annotated[float, Duration(("steps", "epochs", "tokens", "percent"), least=0)]
    final: Annotated[Share, Only("name", *(x for x in SCHEDULES if x != "constant"), default=(0.1, 0.0))]
    decay: Annotated[float, Duration(("steps", "epochs", "tokens", "percent"), required=False, least=1)]

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        decay = {name: x for name, x in values.items() if name.startswith("decay_") and x is not None}
        if values["name"] == "wsd" and not decay:
            raise UserError(f"{where}: wsd needs a length of its descent, such as {where}.decay_percent=20")
        for name, value in decay.items() if values["name"] != "wsd" else ():
            raise UserError(
                f"{where}.{name} = {shown(value)} does nothing where name is {values['name']!r}: only wsd reads it, "
                "leave it None"
            )


class Guard:
    """`config.guard`."""

    spike_sigma: Annotated[Positive | None, Unset("no loss is too high")]
    warmup_steps: Annotated[Whole, Only("spike_sigma", default=50)]
    max_streak: Count


class Mesh:
    """`config.mesh`: sizes of the axes, of which one may be -1 for the rest."""

    data: Annotated[int, Range(least=-1, most=2**20)]
    fsdp: Annotated[int, Range(least=-1, most=2**20)]
    tensor: Annotated[int, Range(least=-1, most=2**20)]
    context: Annotated[int, Range(least=-1, most=2**20)]

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        for name, size in values.items():
            if size == 0:
                raise UserError(f"{where}.{name} = 0: give a whole number from 1 up, or -1 for the rest of the devices")


class Checkpoint:
    """`config.checkpoint`. best: a metric of an evaluation, by which the best checkpoint is kept too."""

    every: Annotated[float, Duration(("steps", "epochs", "tokens", "percent", "seconds"), required=False, least=1)]
    keep_last: Count
    keep_every: Count | None
    best: tuple[Path, Annotated[str, OneOf("max", "min")]] | None = None


class Profile:
    """`config.profile`."""

    at_step: Annotated[Whole | None, Unset("no trace")]
    n_steps: Annotated[Count, Only("at_step", default=3)]


class Run:
    """What the configs of all recipes share."""

    recipe: str
    seed: Whole
    model: Model
    init_from: Path | None
    init_weights: Annotated[str | None, OneOf("params", "ema"), Only("init_from")] = None
    tokenizer: Path | None
    template: Path | None
    lora: Lora
    total: Annotated[float, Duration(("steps", "epochs", "tokens"), least=1)]
    optim: Optim
    schedule: Schedule
    ema_decay: Annotated[float | None, Range(least=0, below=1), Unset("no moving average")]
    guard: Guard
    mesh: Mesh
    partition_rules: list[tuple[Regex, list[Axis | list[Axis] | None]]] | None
    log: Annotated[float, Duration(("steps", "epochs", "tokens", "percent"), least=1)]
    eval: Annotated[float, Duration(("steps", "epochs", "tokens", "percent"), least=1)]
    evals: dict[str, dict]
    checkpoint: Checkpoint
    wandb: Path | None
    profile: Profile

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        if values["template"] is not None:
            load_template(values["template"])
        if (values["model"]["preset"] is None) == (values["init_from"] is None):
            raise UserError(f"set one of {where}.model.preset and {where}.init_from: they say what the network is")
        if values["lora"]["targets"] is not None and values["init_from"] is None:
            raise UserError(f"{where}.lora: adapters need {where}.init_from, the model that they are put on")


class Supervised(Run):
    """A config of pretraining or tuning."""

    data: Data
    lisa: Lisa
    z_loss: NotNegative
    eval_batches: Count

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        Run.check(where, values)
        lisa = values["lisa"]
        if lisa["layers"] is not None and values["lora"]["targets"] is not None:
            raise UserError(
                f"{where}.lisa and {where}.lora: adapters stand on layers that stay as they are; choose one"
            )
