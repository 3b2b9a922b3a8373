"""From a config's sections to the things they describe: mesh, tokenizer, network, data, optimiser, first state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..checkpoints import manifest, origin, reading
from ..checkpoints.interop.generation_config import GenerationDefaults
from ..data.cache import build_cache
from ..data.mixture import EvalPass, Mixture
from ..data.packed import PackedRows
from ..data.sources import Source
from ..data.templates import ChatTemplate, load_template
from ..data.text import TextEncoder
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama
from ..model.attention import IMPLEMENTATIONS
from ..model.config import LlamaConfig
from ..model.sharding import PARTITION_RULES, make_mesh, path_name
from ..model.weights import join, without
from .by_layer import Optimizer
from .optimizer import DECAY, Rules, make_optimizer, make_schedule
from .settings import Seconds, Settings, duration
from .state import State, init_state, state_of, state_shardings
from .thaw import ALL_LAYERS, Thaw, check_period, make_thaw

EVERYTHING: Rules = ((r".*", False),)


def mesh_of(settings: Settings) -> jax.sharding.Mesh:
    """The mesh of `config.mesh`: sizes of data, fsdp, tensor and context."""
    try:
        return make_mesh(dict(settings.mesh))
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None


def tokenizer_of(settings: Settings) -> Tokenizer:
    """`config.tokenizer`, a path; where it is None, that of `config.init_from`."""
    if settings.tokenizer is not None:
        return Tokenizer.load(settings.tokenizer)
    if settings.init_from is None:
        raise UserError("config.tokenizer: give the path of one, or config.init_from a checkpoint that has one")
    tokenizer = origin.load_tokenizer(settings.init_from)
    if tokenizer is None:
        raise UserError(f"{settings.init_from} has no tokenizer; set config.tokenizer")
    return tokenizer


def template_of(settings: Settings, *, needed: bool = True) -> ChatTemplate | None:
    """`config.template`, a name or a jinja file; where it is None, that of `config.init_from`. UserError where there
    is neither and one is needed."""
    if settings.template is not None:
        return load_template(settings.template)
    stored = origin.load_template(settings.init_from) if settings.init_from is not None else None
    if stored is None and needed:
        raise UserError("config.template: name one (chatml, llama2, ...) or give a jinja file")
    return stored


def model_of(settings: Settings, tokenizer: Tokenizer) -> llama.Model:
    """The network of `config.model`: a preset with the tokenizer's vocabulary, or what `config.init_from` holds.

    Every other leaf of the section that is not None changes the field of its name. Of a `rope_scaling` on what
    `config.init_from` holds, lengths that are not said follow from what it was trained on (`LlamaConfig.stretched`).
    """
    changes = {name: value for name, value in settings.model.items() if value is not None}
    preset = changes.pop("preset", None)
    if (preset is None) == (settings.init_from is None):
        raise UserError("the architecture is that of config.model.preset or of config.init_from: set one of the two")
    if isinstance(changes.get("rope_scaling"), Settings):
        changes["rope_scaling"] = dict(changes["rope_scaling"])
    try:
        if preset is None:
            stored = config = origin.load_config(settings.init_from)
            if "rope_scaling" in changes:
                config = config.stretched(**changes.pop("rope_scaling"), max_len=changes.pop("max_len", None))
            _check_grows(settings, config, changes.get("vocab_size"))
            config = LlamaConfig.from_dict(config.to_dict() | changes)
        else:
            config = LlamaConfig.preset(preset, **({"vocab_size": tokenizer.vocab_size} | changes))
        _check_execution(config)
        model = llama.build(config)
        if preset is None:
            _check_shapes(settings.init_from, stored.replace(vocab_size=config.vocab_size), model)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from None
    path = settings.init_from or f"preset {preset}"
    origin.check_rows(tokenizer, config.vocab_size, path, "config.model.vocab_size={}")
    return model


def _check_grows(settings: Settings, config: LlamaConfig, vocab_size: int | None) -> None:
    """Raises UserError where `config.model.vocab_size` asks for rows that loading cannot give."""
    own = config.vocab_size
    if vocab_size is None or vocab_size == own:
        return
    if vocab_size < own:
        raise UserError(f"config.model.vocab_size {vocab_size:,} is less than the {own:,} of {settings.init_from}")
    if not origin.is_foreign(settings.init_from):
        raise UserError(
            f"config.model.vocab_size {vocab_size:,}: {settings.init_from} has {own:,} rows and is a checkpoint of "
            f"camelid's: `camelid convert {settings.init_from} OUTPUT --vocab_size={vocab_size}` makes one with more"
        )


def _check_shapes(path: str, stored: LlamaConfig, model: llama.Model) -> None:
    """Raises ValueError where the network, by a leaf of `config.model`, has other parameters than the one at a path."""
    there, asked = (
        {path_name(key_path): leaf.shape for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (llama.build(stored).abstract_params, model.abstract_params)
    )
    if different := [name for name in {**there, **asked} if there.get(name) != asked.get(name)]:
        name, old, new = different[0], stored.to_dict(), model.config.to_dict()
        sizes = [field for field in new if field not in ("dtype", "param_dtype", "attention", "remat", "unroll")]
        changed = [f"{field} = {new[field]}" for field in sizes if old[field] != new[field]]
        raise ValueError(
            f"{', '.join(changed)}: {name} is {there.get(name, 'not there')} in {path} and would be "
            f"{asked.get(name, 'not there')}; only a network of a preset can have other sizes"
        )


def _check_execution(config: LlamaConfig) -> None:
    """Raises here what would come up in the first step only; `llama.build` looks at remat."""
    for name in (config.dtype, config.param_dtype):
        jnp.dtype(name)
    if config.attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention {config.attention!r}: give one of {', '.join(IMPLEMENTATIONS)}")


def sources_of(mixture: Settings, reading: Settings) -> list[Source]:
    """The sources of a section `mixture`.

    reading: the section with `heldout`, `on_error` and `max_record_bytes`, which says how all of them are read.
    """
    how = {name: reading[name] for name in ("heldout", "on_error", "max_record_bytes")}
    return [Source(entry.source, name, entry.format, entry.weight, **how) for name, entry in mixture.items()]


def data_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The endless training batches of `config.data.mixture`, and one pass over each source's held-out part.

    A source of weight 0 is only measured.
    """
    section, encoder = settings.data, TextEncoder(tokenizer, template)
    sources = []
    for source in sources_of(section.mixture, section):
        share = section.mixture[source.name].get("heldout", section.heldout)
        if not share and not source.weight:
            path = section.mixture.dotted(source.name)
            raise UserError(f"{path}: weight 0 and nothing held out: give it a weight or a heldout")
        sources.append(dataclasses.replace(source, heldout=share))

    def rows(source: Source, split: str, packing: str) -> PackedRows:
        return PackedRows(build_cache(source, split, encoder, section.cache_dir), section.seq_len, packing)

    train = functools.partial(rows, split="train", packing=section.packing)
    batches = Mixture([source for source in sources if source.weight], train, section.batch_size, settings.seed)
    held_out = {source.name: rows(source, "heldout", "fewest_cuts") for source in sources if source.heldout}
    return batches, {name: EvalPass(part, section.batch_size) for name, part in held_out.items()}


def check_rows(settings: Settings, mesh: jax.sharding.Mesh, max_len: int) -> None:
    """Raises UserError if the mesh, and the parts that a step accumulates over, do not divide a batch evenly, or if
    rows are longer than the network's context."""
    if settings.data.seq_len > max_len:
        raise UserError(
            f"config.data.seq_len {settings.data.seq_len} is more than the network's context of {max_len} tokens; "
            "shorten it, or say config.model.max_len"
        )
    parts, devices = settings.optim.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if parts < 1 or settings.data.batch_size % (parts * devices):
        raise UserError(
            f"config.data.batch_size {settings.data.batch_size} is not a multiple of data x fsdp = {devices} devices "
            f"times config.optim.accumulate = {parts}"
        )
    if settings.data.seq_len % mesh.shape["context"]:
        raise UserError(
            f"config.data.seq_len {settings.data.seq_len} is not a multiple of mesh axis context = "
            f"{mesh.shape['context']}"
        )


class Lengths(NamedTuple):
    """Durations of a run, in steps."""

    total: int
    log: int
    evaluate: int


def lengths_of(settings: Settings, batches: Mixture) -> Lengths:
    """`config.total_*`, `log_*` and `eval_*`, each in steps, epochs, tokens or percent."""
    units = dict(steps_per_epoch=batches.steps_per_epoch, tokens_per_step=batches.batch_size * batches.length)
    total = duration(settings, "total", **units)
    lengths = Lengths(
        total=total,
        log=duration(settings, "log", **units, total_steps=total),
        evaluate=duration(settings, "eval", **units, total_steps=total),
    )
    if 0 in lengths:
        raise UserError("config.total, log and eval are lengths of at least one step")
    return lengths


def saving_of(settings: Settings, lengths: Lengths, batches: Any) -> dict[str, Any]:
    """`config.checkpoint` as `Checkpoints` takes it. Where no `every_*` is set, a run saves ten times, so that what a
    kill takes is less than a tenth of it."""
    section = settings.checkpoint
    every = duration(section, "every", **_units(lengths, batches), seconds=True, required=False)
    every = max(1, lengths.total // 10) if every is None else every
    best = section.get("best")
    return {
        "every_seconds": every if isinstance(every, Seconds) else None,
        "every_steps": None if isinstance(every, Seconds) else every,
        "keep_last": section.keep_last,
        "keep_every": section.keep_every,
        "best": best and reading.Best(*best),
    }


def optimizer_of(
    settings: Settings,
    params: Any,
    lengths: Lengths,
    batches: Any,
    *,
    lr: float | None = None,
    updates: int = 1,
    restarts: bool = False,
) -> tuple[Optimizer, optax.Schedule]:
    """The optimiser and the learning rate of `config.optim` and `config.schedule` over the trainable `params`.

    lr: another peak than `config.optim.lr`. updates: how often a step of the run moves the parameters. restarts: as
    `make_optimizer` takes it.
    """
    units = _units(lengths, batches)
    decay_steps = duration(settings.schedule, "decay", **units, required=False)
    section = dict(settings.optim)
    schedule = make_schedule(
        name=settings.schedule.name,
        lr=section["lr"] if lr is None else lr,
        total_steps=lengths.total * updates,
        warmup_steps=duration(settings.schedule, "warmup", **units) * updates,
        final=settings.schedule.final,
        decay_steps=decay_steps and decay_steps * updates,
    )
    del section["lr"], section["frozen"], section["accumulate"]
    section["decay"] = section["decay"] or DECAY
    section["lr_multipliers"] = section["lr_multipliers"] or ((r".*", 1.0),)
    return make_optimizer(params, schedule=schedule, restarts=restarts, **section), schedule


def thaw_of(settings: Settings, trainable: Any, lengths: Lengths, batches: Any) -> Thaw:
    """The layers of `config.lisa` of a network whose parameters that may learn are `trainable`."""
    layers = settings.lisa.layers
    period = duration(settings.lisa, "period", **_units(lengths, batches), required=False)
    if layers is None:
        check_period(layers, period)
        return ALL_LAYERS
    if settings.lora.targets is not None:
        raise UserError("config.lisa and config.lora: adapters stand on layers that stay as they are; choose one")
    return make_thaw(layers, trainable, period, settings.seed)


def _units(lengths: Lengths, batches: Any) -> dict[str, Any]:
    """In what lengths of time may be given, beside steps."""
    return dict(
        steps_per_epoch=batches.steps_per_epoch,
        tokens_per_step=batches.batch_size * batches.length,
        total_steps=lengths.total,
    )


class Start(NamedTuple):
    """What a run's state is made of before the first step.

    init(key): random parameters. load(abstract): those to start from instead, but for `base`, which stays outside of
    the state. frozen: which do not learn. ema: whether a moving average is kept. extra: further entries of the state,
    scalars or trees of them. thaw: which layers learn.
    """

    optimizer: Optimizer
    init: Callable[[jax.Array], Any]
    load: Callable[[Any], Any] | None = None
    base: Mapping[str, Any] = {}
    frozen: Rules = EVERYTHING
    ema: bool = False
    extra: Mapping[str, Any] = {}
    thaw: Thaw = ALL_LAYERS


def abstract_state(start: Start, mesh: jax.sharding.Mesh, partition_rules: Rules | None) -> State:
    """Shapes of the state, and where the rules (None: PARTITION_RULES) put each part of it."""
    make = init_state(start.init, start.optimizer, start.frozen, ema=start.ema, extra=start.extra, thaw=start.thaw)
    abstract = jax.eval_shape(make, jax.random.key(0))
    try:
        where = state_shardings(abstract, mesh, partition_rules or PARTITION_RULES)
    except ValueError as error:
        raise UserError(str(error)) from None
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)
    return own_state(placed, start.base)


def first_state(start: Start, abstract: State, seed: int) -> State:
    """The state before the first step, in the shapes and shardings that `abstract_state` gives."""
    where = jax.tree.map(lambda x: x.sharding, abstract)
    rest = dict(optimizer=start.optimizer, frozen=start.frozen, ema=start.ema, extra=start.extra, thaw=start.thaw)
    if start.load is None:
        return jax.jit(init_state(start.init, **rest), out_shardings=where)(jax.random.key(seed))

    def make(params: Any, base: Any) -> State:
        return own_state(state_of(join(params, base), **rest), base)

    return jax.jit(make, out_shardings=where)(start.load(abstract["params"]), start.base)


def whole_state(state: State, base: Mapping[str, Any]) -> State:
    """The state with whole networks as its parameters."""
    return state | {name: join(state[name], base) for name in ("params", "ema") if name in state}


def own_state(state: State, base: Mapping[str, Any]) -> State:
    """The state without what its networks stand on: what is carried from step to step, and saved."""
    return state | {name: without(state[name], base) for name in ("params", "ema") if name in state}


def weights_of(settings: Settings) -> str | None:
    """Which parameters of `config.init_from` the run takes: "params" or "ema"; None without one."""
    asked = settings.get("init_weights")
    return None if settings.init_from is None else origin.choose_weights(settings.init_from, asked)


def start_of(settings: Settings) -> dict[str, Any] | None:
    """What a manifest says of `config.init_from`: what it holds, and which of its parameters the run took."""
    weights = weights_of(settings)
    return weights and {"identity": origin.identity(settings.init_from), "weights": weights}


def loader(settings: Settings) -> Callable[[Any], Any] | None:
    """The function that reads `config.init_from`'s parameters in the shapes and shardings given; None without one."""
    if settings.init_from is None:
        return None
    return functools.partial(origin.load_params, settings.init_from, name=weights_of(settings))


def generation_of(settings: Settings, tokenizer: Tokenizer) -> GenerationDefaults:
    """What `config.init_from` says of how its answers are drawn; of ids that end them, those that `tokenizer` has for
    the same token."""
    if settings.init_from is None:
        return GenerationDefaults()
    said, own = origin.load_generation(settings.init_from), origin.load_tokenizer(settings.init_from)
    same = own is None or own.fingerprint == tokenizer.fingerprint
    kept = tuple(i for i in said.stop_ids if same or own.piece(i) == tokenizer.piece(i))
    return dataclasses.replace(said, stop_ids=kept)


def manifest_of(
    config: Any, model: llama.Model, tokenizer: Tokenizer, template: ChatTemplate | None, batches: Mixture
) -> dict:
    """What a checkpoint says of itself."""
    described = manifest.describe(config, tokenizer=tokenizer, template=template, data_fingerprint=batches.fingerprint)
    return described | {"model": dataclasses.asdict(model.config)}


def report_data(batches: Mixture, heldout: Mapping[str, EvalPass]) -> list[dict[str, str]]:
    """Rows of a table: each count of each source and split."""
    columns = {f"{name} train": counts for name, counts in batches.summary().items()}
    columns |= {f"{name} heldout": source.summary() for name, source in heldout.items()}
    names = dict.fromkeys(name for counts in columns.values() for name in counts)
    return [{"": name, **{column: _shown(counts.get(name)) for column, counts in columns.items()}} for name in names]


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
