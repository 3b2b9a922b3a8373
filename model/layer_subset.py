"""Gradients of a subset of the layers, which may be another subset at every step.

The forward pass runs the whole stack, which is not differentiated. In the backward pass each trainable layer writes the
gradient of its weights into its own row of a tree that has one row for each trainable layer. Frozen layers compute no
gradient of their weights. So no array of the stack's size is formed. The layer numbers are data: one compiled program
serves every subset.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerSubset:
    """The trainable layers of a network, stored in a parameter tree as "layer_subset" beside "layers"."""

    layers: Any
    """The stack's tree with G rows for G trainable layers, and None for frozen parameters. Gradients are taken by this
    tree; its values are not read."""

    rows: Int[Array, " N"]
    """For each of the N layers of the stack its row in `layers`, or -1 where the layer is frozen."""

    lowest: int = dataclasses.field(default=0, metadata={"static": True})
    """The number of leading layers that keep nothing for a backward pass: they and the embedding are all frozen."""


def scan(
    layer: Callable[..., tuple[jax.Array, Any]],
    x_BTD: Float[Array, "B T D"],
    stack: Any,
    constants: Sequence[Any],
    subset: LayerSubset,
    unroll: int,
) -> Float[Array, "B T D"]:
    """Runs every layer of the stack on x, as a function that is differentiable by x and `subset.layers`.

    `subset.layers` is part of what the loop carries, so that the backward pass carries its gradients and writes them in
    place. If `subset.layers` were a constant of the loop, its gradients would be summed over all layers.

    Args:
        layer: layer(params, x, *constants) returns the layer's output and a second value, which is dropped.
        x_BTD: input of the first layer.
        stack: parameters of all layers, stacked on a leading axis.
        constants: further arguments of every layer.
        subset: the trainable layers.
        unroll: layers that one turn of the loop computes.

    Returns:
        Output of the last layer.
    """

    @jax.custom_vjp
    def step(x_BTD, into, params, row, constants):
        return layer(params, x_BTD, *constants)[0], into

    def forward(x_BTD, into, params, row, constants):
        out_BTD, pull = jax.vjp(lambda params, x_BTD: layer(params, x_BTD, *constants)[0], params, x_BTD)
        return (out_BTD, into), (pull, row)

    def backward(kept, cotangents):
        (pull, row), (out_BTD, into) = kept, cotangents

        def trainable():
            grads, x_BTD = pull(out_BTD)
            return x_BTD, _map(lambda rows, grad: rows.at[row].set(grad), into, grads)

        def frozen():
            return pull(out_BTD)[1], into

        return *jax.lax.cond(row >= 0, trainable, frozen), None, None, None

    step.defvjp(forward, backward)

    def fixed(x_BTD, number):  # indexed by its number: a slice of the stack to loop over would be a copy
        return layer(jax.tree.map(lambda w: w[number], stack), x_BTD, *constants)[0], None

    def body(carry, layer_and_row):
        return step(*carry, *layer_and_row, constants), None

    if subset.lowest:
        x_BTD, _ = jax.lax.scan(fixed, x_BTD, jnp.arange(subset.lowest), unroll=unroll)
    upper = jax.tree.map(lambda x: x[subset.lowest :], (stack, subset.rows))
    (x_BTD, _), _ = jax.lax.scan(body, (x_BTD, subset.layers), upper, unroll=unroll)
    return x_BTD


def _map(f: Callable[[jax.Array, jax.Array], jax.Array], some: Any, tree: Any) -> Any:
    """f over the leaves of both trees, but None where `some` has None."""
    return jax.tree.map(lambda a, b: None if a is None else f(a, b), some, tree, is_leaf=lambda x: x is None)
