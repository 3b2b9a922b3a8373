"""What a layer keeps for its backward pass (`jax.checkpoint`); the rest is recomputed there.

A policy is a name of `REMAT`, or several of `KEPT` joined by commas, such as "attention,residual,gate". What to keep is
a trade of memory for FLOPs, at D FLOPs for a byte in 16 bits, whatever is kept; attention's output spares far more:

| kept | bytes of a token and layer, in 16 bits | FLOPs that are then not repeated |
| --- | --- | --- |
| the layer's input | 2 D, always | |
| query | 2 H E | 2 D H E |
| key, value | 2 K E each | 2 D K E each |
| attention | 2 H E + 4 H | those of attention, about 2 T H E in rows of T tokens |
| residual | 2 D | 2 H E D |
| gate, up | 2 F each | 2 D F each |

D is the width of the residual stream, H and K the numbers of query and key/value heads, E their width, F the width of
the feed-forward layers.
"""

from collections.abc import Callable
from typing import Any

import jax

KEPT = ("query", "key", "value", "attention", "residual", "gate", "up")
"""Names (`jax.ad_checkpoint.checkpoint_name`) of what a layer can keep beside its input: queries and keys turned to
their positions, values, attention's output and the logarithms of its softmax's denominators, the residual stream after
attention, and the two products of the feed-forward layers."""

_KERNELS = ("dot_product_attention_fwd_wrapper", "dot_product_attention_fwd")
"""Primitives of cuDNN's attention. JAX does not name what it keeps."""

_policies = jax.checkpoint_policies


def _keep(*names: str) -> Callable:
    named = _policies.save_only_these_names(*names)
    if "attention" not in names:
        return named

    def policy(primitive: Any, *args: Any, **params: Any) -> Any:
        return primitive.name in _KERNELS or named(primitive, *args, **params)

    return policy


REMAT: dict[str, Callable] = {
    "none": _policies.everything_saveable,
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "attention": _keep("attention"),
    "full": _policies.nothing_saveable,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""What a layer keeps: everything, its weight products, attention's output, only its input, or its input in the host's
memory."""


def policy_of(remat: str) -> Callable:
    """The policy for `jax.checkpoint` of a name of `REMAT`, or of names of `KEPT` joined by commas.

    Raises ValueError for other names.
    """
    if remat in REMAT:
        return REMAT[remat]
    names = remat.split(",")
    if set(names) - set(KEPT):
        known = f"one of {', '.join(REMAT)}, or several of {', '.join(KEPT)}, joined by commas"
        raise ValueError(f"remat {remat!r}: give {known}")
    return _keep(*names)
