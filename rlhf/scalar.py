"""Scalar models: a LLaMA with heads that give numbers instead of words, as reward model, cost model or critic.

Its parameters are those of a LLaMA without the output head, and `score/{kernel, bias}`: H linear heads on the last
layer's normalised states. The number at a position depends on all tokens up to and including that position.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checkpoints import Checkpoint
from ..errors import UserError
from ..model import llama
from ..model.config import LlamaConfig
from ..model.linear import linear

Params = dict[str, Any]


class ScalarModel(NamedTuple):
    """A scalar model as pure functions, made by `build`."""

    config: LlamaConfig
    """Config of the trunk, the LLaMA under the heads."""
    heads: int
    """H, the number of heads."""
    apply: Callable[..., Float[Array, "B T H"]]
    """apply(params, tokens [B, T], segment_ids [B, T], positions [B, T]) -> numbers, float32 [B, T, H]."""
    init: Callable[[jax.Array], Params]
    """init(key) -> random parameters."""


def build(config: LlamaConfig, heads: int = 1) -> ScalarModel:
    """The scalar model with `heads` heads on the layers of a LLaMA of `config`, whose output head it leaves out."""
    trunk = llama.build(config.replace(tied=True))

    def apply(params: Params, tokens_BT, segment_ids_BT=None, positions_BT=None) -> Float[Array, "B T H"]:
        hidden_BTD = trunk.hidden(without_head(params), tokens_BT, segment_ids_BT, positions_BT)
        return read_head(params["score"], hidden_BTD)

    def init(key: jax.Array) -> Params:
        key_trunk, key_head = jax.random.split(key)
        return trunk.init(key_trunk) | {"score": init_head(key_head, config, heads)}

    return ScalarModel(trunk.config, heads, apply, init)


def init_head(key: jax.Array, config: LlamaConfig, heads: int = 1) -> Params:
    """Random heads on a trunk of `config`: weights from N(0, 1 / (D + 1)), bias 0 (arXiv:2009.01325, appendix B.1)."""
    std = (config.dim + 1) ** -0.5
    kernel_DH = std * jax.random.normal(key, (config.dim, heads), config.param_dtype)
    return {"kernel": kernel_DH, "bias": jnp.zeros(heads, config.param_dtype)}


def read_head(head: Params, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T H"]:
    """Applies the heads to states; computed in float32 whatever the dtype of the computation."""
    scores_BTH = linear(hidden_BTD.astype(jnp.float32), head["kernel"].astype(jnp.float32))
    return scores_BTH + head["bias"].astype(jnp.float32)[None, None]


def last_scores(
    model: ScalarModel, params: Params, tokens_RT: Int[Array, "R T"], lengths_R: Int[Array, " R"]
) -> Float[Array, "R H"]:
    """The numbers at the last real token of each row.

    Args:
      model: the scalar model.
      params: its parameters.
      tokens_RT: rows, padded on the right.
      lengths_R: number of real tokens of each row.
    """
    real_RT = jnp.arange(tokens_RT.shape[1])[None] < lengths_R[:, None]
    scores_RTH = model.apply(params, tokens_RT, real_RT.astype(jnp.int32))
    return jnp.take_along_axis(scores_RTH, (lengths_R - 1)[:, None, None], axis=1)[:, 0]


def combine(scores_RH: Float[Array, "R H"], pessimism: float = 0.0) -> Float[Array, " R"]:
    """The score of an ensemble: mean - pessimism * standard deviation over heads (arXiv:2310.02743, section 3)."""
    return jnp.mean(scores_RH, axis=-1) - pessimism * jnp.std(scores_RH, axis=-1)


def rescale(params: Params, gain_H: Float[Array, " H"], offset_H: Float[Array, " H"]) -> Params:
    """The parameters of a scalar model whose heads give gain * x + offset where those of `params` give x."""
    head = params["score"]
    kernel_DH = (head["kernel"] * gain_H[None]).astype(head["kernel"].dtype)
    bias_H = (head["bias"] * gain_H + offset_H).astype(head["bias"].dtype)
    return params | {"score": {"kernel": kernel_DH, "bias": bias_H}}


def without_head(params: Params) -> Params:
    """The parameters of a trunk: those of a LLaMA or scalar model without its heads."""
    return {name: part for name, part in params.items() if name not in ("score", "head")}


def head_maker(key: jax.Array, config: LlamaConfig, heads: int = 1) -> Callable[[Params], Params]:
    """Makes the function that draws random heads.

    Args:
      key: the random key.
      config: config of the trunk.
      heads: number of heads.

    Returns:
      make(abstract) -> heads, in the shardings of the shapes `abstract`.
    """

    def make(abstract: Params) -> Params:
        return jax.device_put(init_head(key, config, heads), jax.tree.map(lambda x: x.sharding, abstract))

    return make


def trunk_loader(start: Checkpoint, fresh_head: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """Makes the function load(abstract) -> parameters of a scalar model, with a checkpoint's trunk and new heads.

    Args:
      start: the checkpoint.
      fresh_head: the function of `head_maker`.
    """

    def load(abstract: Params) -> Params:
        trunk = start.load_params(without_head(abstract), some=True)
        return trunk | {"score": fresh_head(abstract["score"])}

    return load


def check_is_scalar(found: Checkpoint) -> None:
    """Raises UserError unless a checkpoint holds a scalar model."""
    if found.kind != "scalar":
        raise UserError(
            f"{found.name}: a language model; a reward or cost model comes from the recipe `reward`; give its run"
        )
