"""Gradients of a few layers of the stack, and none of the others, whichever layers these are from step to step.

The forward pass is the ordinary one, over the whole stack, which is not differentiated. In the backward pass a layer
that learns writes the gradient of its weights into its own row of a tree with as many rows as layers learn; of a layer
that does not, no such gradient is computed. So nothing of the stack's size is formed, and which layers learn is data:
one compiled program serves them all.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Thawed:
    """What stands in a parameter tree under "thawed", beside "layers", where only some layers learn.

    layers: like the stack, but with G rows, by which gradients are taken, and None for what does not learn; its values
    are not used. rows: for each layer of the stack its row there, -1 where it does not learn. lowest: no layer below
    this one learns, nor does the embedding, so that nothing is kept for a backward pass there.
    """

    layers: Any
    rows: Int[Array, " N"]
    lowest: int = dataclasses.field(default=0, metadata={"static": True})


def scan(
    layer: Callable[..., tuple[jax.Array, Any]],
    x_BTD: Float[Array, "B T D"],
    stack: Any,
    constants: Sequence[Any],
    thawed: Thawed,
    unroll: int,
) -> Float[Array, "B T D"]:
    """x after layer(params, x, *constants)[0] for each layer of the stack, differentiable by x and `thawed.layers`.

    The latter go through the loop as what it carries, so that backwards their gradients are carried and written in
    place; as constants of the loop they would be summed over all layers, most of them zero.
    """

    @jax.custom_vjp
    def step(x_BTD, into, params, row, constants):
        return layer(params, x_BTD, *constants)[0], into

    def forward(x_BTD, into, params, row, constants):
        out_BTD, pull = jax.vjp(lambda params, x_BTD: layer(params, x_BTD, *constants)[0], params, x_BTD)
        return (out_BTD, into), (pull, row)

    def backward(kept, cotangents):
        (pull, row), (out_BTD, into) = kept, cotangents

        def learn():
            grads, x_BTD = pull(out_BTD)
            return x_BTD, _map(lambda rows, grad: rows.at[row].set(grad), into, grads)

        def pass_on():
            return pull(out_BTD)[1], into

        return *jax.lax.cond(row >= 0, learn, pass_on), None, None, None

    step.defvjp(forward, backward)

    def fixed(x_BTD, number):  # by its number: a part of the stack to loop over would be a copy
        return layer(jax.tree.map(lambda w: w[number], stack), x_BTD, *constants)[0], None

    def body(carry, layer_and_row):
        return step(*carry, *layer_and_row, constants), None

    if thawed.lowest:
        x_BTD, _ = jax.lax.scan(fixed, x_BTD, jnp.arange(thawed.lowest), unroll=unroll)
    upper = jax.tree.map(lambda x: x[thawed.lowest :], (stack, thawed.rows))
    (x_BTD, _), _ = jax.lax.scan(body, (x_BTD, thawed.layers), upper, unroll=unroll)
    return x_BTD


def _map(f: Callable[[jax.Array, jax.Array], jax.Array], some: Any, tree: Any) -> Any:
    """f over the leaves of both trees, but None where `some` has None."""
    return jax.tree.map(lambda a, b: None if a is None else f(a, b), some, tree, is_leaf=lambda x: x is None)
