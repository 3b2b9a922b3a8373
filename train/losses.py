"""Losses of pretraining and tuning: the cross-entropy of the next token, or a loss of the user's own.

`config.loss` names a function of the user's own:

    def make_loss(model: llama.Model, config: SupervisedConfig) -> LossFn:
        def loss_fn(params, rows):
            logp_BT = token_logprobs(model, params, rows).logp
            focal_BT = -((1 - jnp.exp(logp_BT)) ** 2) * logp_BT
            return jnp.sum(focal_BT * rows["loss_mask"]), jnp.sum(rows["loss_mask"]), {}
        return loss_fn

`rows` has packed rows of one part of the batch: tokens, targets, segment_ids, positions (int32 [B, T]) and loss_mask
(float32 [B, T]). The three results are sums. They are divided once, by the tokens of the whole batch, so that the loss
does not depend on `optim.accumulate`, the packing or the number of devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ..errors import UserError, shown
from ..model import llama
from ..model.logprobs import next_token_loss
from ..settings.functions import find_function, raised
from .update import LossFn


def find_loss(name: str, where: str) -> Callable[[llama.Model, Any], LossFn]:
    """The function of the user's own that makes a loss. Raises UserError, which begins with `where`."""
    return find_function(name, where, "make_loss(model, config)", None, None)


def loss_of(model: llama.Model, config: Any) -> LossFn:
    """The loss of a `SupervisedConfig`: that of `config.loss`, else the cross-entropy with `config.z_loss`.

    Raises UserError where the user's own function fails, here or in the step that is traced with its loss.
    """
    if config.loss is None:
        return next_token_loss(model, config.z_loss)
    where = f"config.loss = {config.loss!r}"
    make_loss = find_loss(config.loss, "config.loss")
    own = call(where, make_loss, model, config)
    if not callable(own):
        raise UserError(f"{where}: it returned {shown(own)}: return a function loss_fn(params, rows)")

    def loss_fn(params: Any, rows: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        return checked(call(where, own, params, rows), where)

    return loss_fn


def call(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the user's own returns. Raises UserError, which begins with `where`, for what it raises."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a user's function may raise
        raise UserError(f"{where}: {raised(error)}") from error


def checked(found: Any, where: str) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The results of a loss of the user's own: two scalars and a dict of scalars. Raises UserError for others."""
    if not (isinstance(found, tuple | list) and len(found) == 3 and isinstance(found[2], Mapping)):
        raise UserError(
            f"{where}: the loss returned {_kind(found)}: return the sum of the loss over tokens, the number of tokens, "
            "and a dict of further sums"
        )
    loss, tokens, sums = found
    for name, value in {"the loss": loss, "the number of tokens": tokens, **sums}.items():
        if getattr(value, "shape", ()) != ():
            raise UserError(f"{where}: {name} has the shape {list(value.shape)}: return a scalar, the sum over tokens")
    return loss, tokens, dict(sums)


def _kind(value: Any) -> str:
    """What a value is, in few words: arrays within a step have no numbers to show."""
    if isinstance(value, tuple | list):
        return f"{len(value)} results"
    return f"an array of shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
