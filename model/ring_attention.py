"""Ring attention: attention of rows that the mesh axis `context` splits (Liu et al., arXiv:2310.01889, section 3).

Each device keeps its queries. Keys and values travel around the ring of devices, a part at a time, and the next part
travels while the present one is attended to. Parts of a softmax are joined by the logarithms of their denominators. The
backward pass goes around the same ring, with the gradients of keys and values behind them. A device never holds more
than its own part of a row and two that travel.

Contiguous parts leave most of the work to the device that holds the end of a row. So rows are dealt in a zigzag (Llama
3, arXiv:2407.21783, section 3.3.2): of 2 C equal chunks, device d of C holds chunks d and 2 C - 1 - d. In every step
after the first, each device then attends with two blocks of queries to two chunks of keys, and no block is masked. The
network reorders its tokens once and its states once (`llama.py`); nothing else sees the order. With a window, a part
only sees the parts shortly before it: contiguous parts are balanced then, and travel no further than the window.

Names of arrays: B rows, H query heads, K key/value heads, E their width, T queries of a device, S keys of a block.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Shaped

from . import attention_blocks
from .attention_blocks import Sight
from .sharding import BATCH, axis_size, compile_platform

AXIS = "context"
LANES = 128
"""Tokens of which the chunks of a row are a multiple on TPUs, as splash attention needs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Zigzag:
    """Segment ids of rows in the order of `to_zigzag`; this type tells attention that a row is in that order."""

    segment_ids_BT: Int[Array, "B T"]


def balances(implementation: str, window: int | None, B: int, T: int) -> bool:
    """Whether a network orders rows of T tokens in a zigzag: where the mesh splits them and 2 C chunks divide them."""
    unit = 2 * axis_size(AXIS) * (LANES if implementation == "splash" or compile_platform() == "tpu" else 1)
    whole = window is None or window >= T
    return implementation in ("auto", "xla", "splash") and whole and T % unit == 0 and takes(B, T)


def takes(B: int, T: int) -> bool:
    """Whether attention goes around a ring: where the mesh splits rows, and divides them and the batch evenly."""
    return axis_size(AXIS) > 1 and T % axis_size(AXIS) == 0 and B % math.prod(map(axis_size, BATCH)) == 0


def attend(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    segment_ids_BT: Int[Array, "B T"] | Zigzag,
    *,
    kernel: str,
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """softmax(q k^T) v over earlier positions of the same segment, of rows that the mesh axis `context` splits.

    Args:
        q_BTHE: queries, scaled. Query head h reads key/value head h // (H / K).
        k_BTKE: keys.
        v_BTKE: values.
        segment_ids_BT: segments; `Zigzag` for rows in that order.
        kernel: "xla" or "splash", which computes the blocks.
        window: number of positions that a position sees, itself among them; None for all.
        interpret: whether splash attention runs without a TPU, for tests.

    Raises ValueError for rows that the devices do not divide.
    """
    zigzag = isinstance(segment_ids_BT, Zigzag)
    segments = segment_ids_BT.segment_ids_BT if zigzag else segment_ids_BT
    chunks = axis_size(AXIS) * (1 + zigzag)
    unit = chunks * LANES if kernel == "splash" else chunks
    T = q_BTHE.shape[1]
    if T % unit:
        raise ValueError(f"{kernel} attention takes rows of a multiple of {unit} tokens, not {T}")
    window = None if window is None or window >= T else window
    if zigzag and window is not None:
        raise ValueError("rows in a zigzag have no window shorter than they are")
    ring = _Ring(axis_size(AXIS), zigzag, T // chunks, window, attention_blocks.kernels(kernel, interpret))

    def part(q_BTHE, k_BTKE, v_BTKE, segments_BT):
        q_BHTE, k_BKTE, v_BKTE = (jnp.swapaxes(x, 1, 2) for x in (q_BTHE, k_BTKE, v_BTKE))
        return jnp.swapaxes(_around(ring, q_BHTE, k_BKTE, v_BKTE, segments_BT[:, None]), 1, 2)

    heads, rows = P(BATCH, AXIS, "tensor", None), P(BATCH, AXIS)
    shares = jax.shard_map(part, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return shares(q_BTHE, k_BTKE, v_BTKE, segments)


@dataclass(frozen=True)
class _Ring:
    """What the devices of a ring know before they begin."""

    size: int
    """Devices of the ring."""

    zigzag: bool
    """Whether a device holds two chunks of a row, d and 2 C - 1 - d, or one."""

    chunk: int
    """Tokens of a chunk."""

    window: int | None
    """Positions that a position sees; None for all."""

    kernels: attention_blocks.Kernels
    """Attention of a block, forward and backward."""

    @property
    def steps(self) -> int:
        """How often parts travel on: C - 1 times, or as far as a window reaches."""
        return self.size - 1 if self.window is None else min(self.size - 1, -(-(self.window - 1) // self.chunk))

    @property
    def alike(self) -> int:
        """The number of steps, from the first on, in which no block is masked."""
        return self.steps if self.window is None else min(self.steps, max(0, self.window // self.chunk - 1))

    def sight(self, step: int) -> Sight:
        """What queries see of the keys that come from `step` devices before."""
        return Sight(self.chunk, None) if step <= self.alike else Sight(step * self.chunk, self.window)

    def chunks(self, x: Shaped[Array, "B N T ..."]) -> list[Shaped[Array, "B N S ..."]]:
        """The chunks of a device's part."""
        return jnp.split(x, 1 + self.zigzag, axis=2)

    def meet(self, step: Int[Array, ""] | int, add: Callable, sums: Any) -> Any:
        """`sums` after add(i, j)(sums) for all chunks i of queries that see something of the chunks j that came.

        Chunks come from device e = d - step. Where e >= 0, both chunks of queries see the first chunk of keys, which is
        earlier, and none sees the second. Else the second chunk of queries sees both chunks of keys. Contiguous parts
        see nothing there.
        """
        if not self.zigzag:
            return jax.lax.cond(self.from_earlier(step), add(0, 0), lambda sums: sums, sums)
        return jax.lax.cond(self.from_earlier(step), add(0, 0), add(1, 1), add(1, 0)(sums))

    def from_earlier(self, step: Int[Array, ""] | int) -> Bool[Array, ""]:
        """Whether the device from which parts came in a step holds earlier positions: first chunks, in a zigzag."""
        return jax.lax.axis_index(AXIS) >= step

    def send(self, tree: Any, by: int = 1) -> Any:
        """What the device `by` places before has, here."""
        return jax.lax.ppermute(tree, AXIS, [(i, (i + by) % self.size) for i in range(self.size)])


def _turns(ring: _Ring, turn: Callable, carry: Any) -> Any:
    """turn(carry, step, sight) for all steps of a ring. Steps that are alike are a loop, so that XLA cannot send all
    parts at once, which would fill the memory; the last step stands alone, and its parts travel no further."""
    looped = min(ring.alike, ring.steps - 1)
    if looped > 0:
        full = ring.sight(1)
        carry, _ = jax.lax.scan(lambda carry, step: (turn(carry, step, full), None), carry, jnp.arange(1, looped + 1))
    for step in range(max(looped, 0) + 1, ring.steps + 1):
        carry = turn(carry, step, ring.sight(step))
    return carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(ring: _Ring, q_BHTE, k_BKTE, v_BKTE, segments_B1T) -> Float[Array, "B H T E"]:
    return _forward(ring, q_BHTE, k_BKTE, v_BKTE, segments_B1T)[0]


def _forward(ring: _Ring, *inputs: Array) -> tuple[Float[Array, "B H T E"], tuple]:
    q, k, v, segments = map(ring.chunks, inputs)

    def block(i: int, keys: tuple, j: int, sight: Sight) -> tuple[Array, Array]:
        k, v, k_segments = keys
        return ring.kernels.forward(q[i], k[j], v[j], segments[i], k_segments[j], sight)

    def turn(carry, step, sight):
        sums, arrived = carry
        leaving = ring.send(arrived)

        def add(i, j):
            return lambda sums: _replaced(sums, i, _joined(sums[i], block(i, arrived, j, sight)))

        return ring.meet(step, add, sums), leaving

    own = k, v, segments
    sums = [block(i, own, i, Sight(0, ring.window)) for i in range(len(q))]
    sums = [(out.astype(jnp.float32), lse) for out, lse in sums]
    if ring.zigzag:
        sums = _replaced(sums, 1, _joined(sums[1], block(1, own, 0, ring.sight(1))))
    sums, _ = _turns(ring, turn, (sums, ring.send(own)))
    dtype = q[0].dtype
    out, lse = zip(*(checkpoint_name((out.astype(dtype), lse), "attention") for out, lse in sums), strict=True)
    return jnp.concatenate(out, axis=2), (q, k, v, segments, out, lse)


def _replaced(x: list, i: int, value: Any) -> list:
    return [*x[:i], value, *x[i + 1 :]]


def _joined(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """Attention over the keys of two blocks, of its outputs and logarithms of denominators for each of them."""
    lse_BHT = jnp.logaddexp(one[1], other[1])
    return sum(out * jnp.exp(lse - lse_BHT)[..., None] for out, lse in (one, other)), lse_BHT


def _backward(ring: _Ring, kept: tuple, d_out_BHTE: Array) -> tuple:
    """Gradients of keys and values go around a step behind: a sum that arrives is added to that of the block, which is
    computed while the sum travels."""
    q, k, v, segments, out, lse = kept
    d_out = ring.chunks(d_out_BHTE)

    def block(i: int, keys: tuple, j: int, sight: Sight) -> tuple[Array, Array, Array]:
        k, v, k_segments = keys
        return ring.kernels.backward(q[i], k[j], v[j], segments[i], k_segments[j], out[i], lse[i], d_out[i], sight)

    def turn(carry, step, sight):
        (dq, *sums), arrived = carry
        leaving, sums = ring.send(arrived), ring.send(sums)
        return _add_gradients(ring, step, lambda i, j: block(i, arrived, j, sight), (dq, *sums)), leaving

    own = k, v, segments
    each = zip(*(block(i, own, i, Sight(0, ring.window)) for i in range(len(q))), strict=True)
    sums = tuple([dx.astype(jnp.float32) for dx in chunks] for chunks in each)
    if ring.zigzag:
        sums = _added(sums, block(1, own, 0, ring.sight(1)), 1, 0)
    (dq, *sums), _ = _turns(ring, turn, (sums, ring.send(own)))
    dk, dv = ring.send(sums, by=-ring.steps) if ring.steps else sums
    pairs = (dq, q), (dk, k), (dv, v)
    return *(jnp.concatenate(dx, axis=2).astype(x[0].dtype) for dx, x in pairs), None


def _add_gradients(ring: _Ring, step: Int[Array, ""] | int, block: Callable, sums: tuple) -> tuple:
    """Gradients of all chunks, with those of the blocks that `_Ring.meet` names.

    In a zigzag no block needs the sums, which may still be on their way while blocks are computed.
    """
    if not ring.zigzag:
        return ring.meet(step, lambda i, j: lambda sums: _added(sums, block(i, j), i, j), sums)
    always = block(1, 0)
    from_earlier = ring.from_earlier(step)
    either = jax.lax.cond(from_earlier, lambda: block(0, 0), lambda: block(1, 1))
    sums = _added(sums, always, 1, 0)
    sums = _added(sums, [jnp.where(from_earlier, dx, 0) for dx in either], 0, 0)
    return _added(sums, [jnp.where(from_earlier, 0, dx) for dx in either], 1, 1)


def _added(sums: tuple, block: Sequence[Array], i: int, j: int) -> tuple:
    """Gradients of chunks, with those of a block of queries i and keys j."""
    return tuple(_replaced(dx, n, dx[n] + new) for dx, new, n in zip(sums, block, (i, j, j), strict=True))


_around.defvjp(_forward, _backward)


def to_zigzag(x_BT: Shaped[Array, "B T *rest"]) -> Shaped[Array, "B T *rest"]:
    """Rows with their 2 C chunks in the order 0, 2 C - 1, 1, 2 C - 2, ..., of which each device holds two."""
    size = axis_size(AXIS)

    def part(x):
        first, second = (
            jax.lax.ppermute(x_, AXIS, list(enumerate(to)))
            for x_, to in zip(jnp.split(x, 2, axis=1), _homes(size), strict=True)
        )
        return _in_order(first, second)

    return _on_parts(part, x_BT)


def from_zigzag(x_BT: Shaped[Array, "B T *rest"]) -> Shaped[Array, "B T *rest"]:
    """Rows in the order of their positions again."""
    size = axis_size(AXIS)

    def part(x):
        chunks = jnp.split(_in_order(*jnp.split(x, 2, axis=1)), 2, axis=1)
        back = ([(home, d) for d, home in enumerate(homes)] for homes in _homes(size))
        return jnp.concatenate([jax.lax.ppermute(x_, AXIS, to) for x_, to in zip(chunks, back, strict=True)], axis=1)

    return _on_parts(part, x_BT)


def _homes(size: int) -> tuple[list[int], list[int]]:
    """Devices that hold the even and the odd chunks of a zigzag."""
    homes = [min(chunk, 2 * size - 1 - chunk) for chunk in range(2 * size)]
    return homes[::2], homes[1::2]


def _in_order(even: Array, odd: Array) -> Array:
    """A device's chunks, earlier one first, from an even and an odd one; or the even one first, from earlier and later.

    Of chunks d and 2 C - 1 - d, the earlier one is even where d is.
    """
    is_even = jax.lax.axis_index(AXIS) % 2 == 0
    return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=1)


def _on_parts(part: Callable, x_BT: Array) -> Array:
    spec = P(BATCH, AXIS, *[None] * (x_BT.ndim - 2))
    return jax.shard_map(part, in_specs=spec, out_specs=spec, check_vma=False)(x_BT)
