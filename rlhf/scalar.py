"""A LLaMA that gives numbers instead of words: reward model, cost model and critic.

Its parameters are those of a LLaMA without the output head, and `score/{kernel, bias}`: one linear head or several over
the last layer's normalised states. The number at a position judges everything up to and including that position.
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
    """What `build` gives. config: the trunk's. heads: H numbers for each position.

    apply(params, tokens [B, T], segment_ids [B, T], positions [B, T]) -> float32 [B, T, H]. init(key) -> parameters.
    """

    config: LlamaConfig
    heads: int
    apply: Callable[..., Float[Array, "B T H"]]
    init: Callable[[jax.Array], Params]


def build(config: LlamaConfig, heads: int = 1) -> ScalarModel:
    """The scalar model on a trunk of `config`, with or without an output head of its own."""
    trunk = llama.build(config.replace(tied=True))

    def apply(params: Params, tokens_BT, segment_ids_BT=None, positions_BT=None) -> Float[Array, "B T H"]:
        hidden_BTD = trunk.hidden(without_head(params), tokens_BT, segment_ids_BT, positions_BT)
        return read_head(params["score"], hidden_BTD)

    def init(key: jax.Array) -> Params:
        key_trunk, key_head = jax.random.split(key)
        return trunk.init(key_trunk) | {"score": init_head(key_head, config, heads)}

    return ScalarModel(trunk.config, heads, apply, init)


def init_head(key: jax.Array, config: LlamaConfig, heads: int = 1) -> Params:
    """Weights from N(0, 1 / (D + 1)), bias 0 (Stiennon et al., arXiv:2009.01325, appendix B.1)."""
    std = (config.dim + 1) ** -0.5
    kernel_DH = std * jax.random.normal(key, (config.dim, heads), config.param_dtype)
    return {"kernel": kernel_DH, "bias": jnp.zeros(heads, config.param_dtype)}


def read_head(head: Params, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T H"]:
    """The heads' numbers, in float32 whatever the compute dtype."""
    scores_BTH = linear(hidden_BTD.astype(jnp.float32), head["kernel"].astype(jnp.float32))
    return scores_BTH + head["bias"].astype(jnp.float32)[None, None]


def last_scores(
    model: ScalarModel, params: Params, tokens_RT: Int[Array, "R T"], lengths_R: Int[Array, " R"]
) -> Float[Array, "R H"]:
    """The number at the last of the `lengths_R` real tokens of each row, rows padded on the right."""
    real_RT = jnp.arange(tokens_RT.shape[1])[None] < lengths_R[:, None]
    scores_RTH = model.apply(params, tokens_RT, real_RT.astype(jnp.int32))
    return jnp.take_along_axis(scores_RTH, (lengths_R - 1)[:, None, None], axis=1)[:, 0]


def combine(scores_RH: Float[Array, "R H"], pessimism: float = 0.0) -> Float[Array, " R"]:
    """The ensemble's verdict: mean - pessimism * standard deviation over heads (arXiv:2310.02743, section 3)."""
    return jnp.mean(scores_RH, axis=-1) - pessimism * jnp.std(scores_RH, axis=-1)


def rescale(params: Params, gain_H: Float[Array, " H"], offset_H: Float[Array, " H"]) -> Params:
    """The model whose numbers are gain * (the old ones) + offset."""
    head = params["score"]
    kernel_DH = (head["kernel"] * gain_H[None]).astype(head["kernel"].dtype)
    bias_H = (head["bias"] * gain_H + offset_H).astype(head["bias"].dtype)
    return params | {"score": {"kernel": kernel_DH, "bias": bias_H}}


def without_head(params: Params) -> Params:
    """A trunk's parameters: neither the heads for numbers nor the one for words."""
    return {name: part for name, part in params.items() if name not in ("score", "head")}


def head_maker(key: jax.Array, config: LlamaConfig, heads: int = 1) -> Callable[[Params], Params]:
    """The function that makes a fresh head in the shardings of the shapes that it is given."""

    def make(abstract: Params) -> Params:
        return jax.device_put(init_head(key, config, heads), jax.tree.map(lambda x: x.sharding, abstract))

    return make


def trunk_loader(start: Checkpoint, fresh_head: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """The function that reads a scalar model's trunk from a checkpoint and puts a fresh head on it."""

    def load(abstract: Params) -> Params:
        trunk = start.load_params(without_head(abstract), some=True)
        return trunk | {"score": fresh_head(abstract["score"])}

    return load


def check_is_scalar(found: Checkpoint) -> None:
    """Raises UserError for the checkpoint of a language model."""
    if found.kind != "scalar":
        raise UserError(f"{found.name}: a language model; a reward or cost model comes from the recipe `reward`")
