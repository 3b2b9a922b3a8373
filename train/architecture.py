"""From `config.model` to the network that a run trains."""

import jax
import jax.numpy as jnp

from ..checkpoints import Checkpoint, ForeignCheckpoint
from ..checkpoints.checkpoint import check_rows
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama
from ..model.attention import IMPLEMENTATIONS
from ..model.config import LlamaConfig
from ..model.sharding import path_name
from .settings import Settings


def model_of(settings: Settings, start: Checkpoint | None, tokenizer: Tokenizer | None) -> llama.Model:
    """The network of `config.model`: a preset with the tokenizer's vocabulary, or that of the checkpoint `start`.

    Every other leaf of the section that is not None changes the field of its name. Of a `rope_scaling` on the network
    of `start`, lengths that are not said follow from what it was trained on (`LlamaConfig.stretched`).
    """
    changes = {name: value for name, value in settings.model.items() if value is not None}
    preset = changes.pop("preset", None)
    if (preset is None) == (start is None):
        raise UserError("the architecture is that of config.model.preset or of config.init_from: set one of the two")
    if isinstance(changes.get("rope_scaling"), Settings):
        changes["rope_scaling"] = dict(changes["rope_scaling"])
    try:
        if preset is None:
            stored = config = start.config
            if "rope_scaling" in changes:
                config = config.stretched(**changes.pop("rope_scaling"), max_len=changes.pop("max_len", None))
            _check_grows(start, changes.get("vocab_size"))
            config = LlamaConfig.from_dict(config.to_dict() | changes)
        else:
            config = LlamaConfig.preset(
                preset, **(({"vocab_size": tokenizer.vocab_size} if tokenizer else {}) | changes)
            )
        _check_execution(config)
        model = llama.build(config)
        if preset is None:
            _check_shapes(start.name, stored.replace(vocab_size=config.vocab_size), model)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from None
    name = f"preset {preset}" if start is None else start.name
    check_rows(tokenizer, config.vocab_size, name, "config.model.vocab_size={}")
    return model


def _check_grows(start: Checkpoint, vocab_size: int | None) -> None:
    """Raises UserError where `config.model.vocab_size` asks for rows that loading cannot give."""
    own = start.config.vocab_size
    if vocab_size is None or vocab_size == own:
        return
    if vocab_size < own:
        raise UserError(f"config.model.vocab_size {vocab_size:,} is less than the {own:,} of {start.name}")
    if not isinstance(start, ForeignCheckpoint):
        raise UserError(
            f"config.model.vocab_size {vocab_size:,}: {start.name} has {own:,} rows and is a checkpoint of "
            f"camelid's: `camelid convert {start.name} OUTPUT --vocab_size={vocab_size}` makes one with more"
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
