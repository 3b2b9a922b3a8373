"""Low-rank adapters of which each row of a batch uses one or none, beside the matrices of one network.

A matrix with such adapters is {"base", "down" [.., inputs, N], "up" [.., N, outputs], "owners" [.., N]}. Its N
directions are those of all adapters, and `owners` has the number of the adapter, from 1 on, that each belongs to. A row
that uses adapter j computes x base + (x down, 0 where the owner is not j) up (`linear`). The zeros add nothing: a row's
numbers are the same bits whatever adapters there are besides its own. With DoRA there are also "factors"
[.., A + 1, outputs], by which the outputs of each adapter's rows are multiplied; those of the rows without an adapter,
number 0, are 1.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..errors import UserError
from .sharding import path_name
from .storage import plain_matrix
from .weights import VECTORS, Weight, is_adapter, is_weight, split_axes

Params = dict[str, Any]


def adapters_over(base: Params, adapted: Params, name: str) -> Params:
    """The adapters that a parameter tree has over the one that it was made from by `LanguageModel.with_adapters`.

    Args:
      base: the tree without the adapters.
      adapted: the tree with them, which shares the arrays of `base`.
      name: the adapters' name, for the error.

    Raises UserError if another parameter than adapters differs, which all rows would share.
    """

    def one(key_path, below, above):
        if is_adapter(above) and _same(below, above["base"]):
            return {part: x for part, x in above.items() if part != "base"}
        if _same(below, above):
            return None
        path = path_name(key_path)
        raise UserError(f"adapters {name}: {path} was trained whole, which rows cannot share: serve them alone")

    return jax.tree_util.tree_map_with_path(one, base, adapted, is_leaf=is_weight)


def _same(a: Any, b: Any) -> bool:
    """Whether two trees consist of the same arrays."""
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves_a) == len(leaves_b) and all(x is y for x, y in zip(leaves_a, leaves_b, strict=True))


def put(params: Params, adapters: Sequence[Params], abstract: Params) -> Params:
    """The parameters with adapters beside the matrices of layers and head. Adapter number j is `adapters[j - 1]`.

    Args:
      params: the parameters.
      adapters: trees of adapters (`adapters_over`); None where a parameter has none.
      abstract: the network's tree of plain matrices or of their shapes.
    """
    scaled = any(path_name(path).endswith("magnitude") for path, _ in jax.tree_util.tree_leaves_with_path(adapters))

    def one(key_path, plain, matrix, *own):
        path = path_name(key_path)
        if path.endswith((*VECTORS, "embedding")):
            return matrix
        return {"base": matrix} | _beside(matrix, own, path, plain.shape, scaled)

    return jax.tree_util.tree_map_with_path(one, abstract, params, *adapters)


def _beside(matrix: Any, own: Sequence[Params | None], path: str, shape: tuple[int, ...], scaled: bool) -> Params:
    """The parts of all adapters of one matrix. scaled: whether they have factors."""
    stack, inputs, outputs = split_axes(path, shape)
    axis = len(stack)
    downs, ups, owners = [jnp.zeros((*stack, *inputs, 0))], [jnp.zeros((*stack, 0, *outputs))], []
    factors = [jnp.ones((*stack, *outputs))] * (len(own) + 1)
    for number, parts in enumerate(own, 1):
        if parts is None:
            continue
        gain = parts["gain"].reshape(*stack, *[1] * (1 + len(outputs)))
        for down, up, sign in (("a", "b", 1), ("a0", "b0", -1)):
            if down in parts:
                downs.append(parts[down])
                ups.append(sign * gain * parts[up])
                owners += [number] * parts[down].shape[-1]
        if "magnitude" in parts:
            factors[number] = parts["magnitude"] / _norms(matrix, parts, path, axis, len(inputs))
    found = {
        "down": jnp.concatenate(downs, -1),
        "up": jnp.concatenate(ups, axis),
        "owners": jnp.broadcast_to(jnp.asarray(owners, jnp.int32), (*stack, len(owners))),
    }
    return found | ({"factors": jnp.stack(factors, axis)} if scaled else {})


def _norms(matrix: Any, parts: Params, path: str, stack: int, inputs: int) -> jax.Array:
    """The Euclidean norm of each output's column of an adapted matrix without its magnitudes."""
    whole = plain_matrix({"base": matrix} | {n: x for n, x in parts.items() if n != "magnitude"}, path)
    return jnp.sqrt(jnp.sum(whole**2, axis=tuple(range(stack, stack + inputs))))


def has_adapters(matrix: Any) -> bool:
    """Whether a matrix has adapters of single rows."""
    return isinstance(matrix, Weight) and "owners" in matrix.parts


def choose(tree: Any, adapters_R: Int[Array, " R"]) -> Any:
    """A tree of matrices whose products with R rows use these adapters; 0 stands for none."""

    def one(matrix: Any) -> Any:
        if not has_adapters(matrix):
            return matrix
        return Weight(matrix.parts | {"chosen": adapters_R}, by_blocks=matrix.by_blocks)

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, Weight))
