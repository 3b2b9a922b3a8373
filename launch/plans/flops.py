"""FLOPs of a program, counted in its jaxpr: those of matrix products, as the hardware computes them.

The jaxpr is that of `jitted.trace(*args).jaxpr`. A scan counts its body once for each turn, recomputation counts again,
and a branch counts as its most expensive case. Elementwise operations are not counted: they do not run on matrix units.

Attention kernels count the blocks that they compute. Splash attention skips the blocks of its grid that its mask rules
out, and computes the others whole; its mask is a constant of the jaxpr. cuDNN's attention, which gets its mask as an
array, computes every score: 2 products forward and 5 backward.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

CUDNN_PRODUCTS = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}
"""Matrix products of queries, keys and values in a call of cuDNN's attention, by primitive."""

OPAQUE = {
    "cholesky",
    "eig",
    "eigh",
    "ffi_call",
    "householder_product",
    "io_callback",
    "lu",
    "pure_callback",
    "qr",
    "ragged_dot_general",
    "scaled_matmul",
    "schur",
    "svd",
    "triangular_solve",
    "dot_product_attention_fp8_fwd",
    "dot_product_attention_fp8_bwd",
}
"""Primitives that may multiply matrices and are not counted."""

FOLDED = {
    "add": np.add,
    "convert_element_type": np.asarray,
    "copy": np.asarray,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "sub": np.subtract,
}
"""Primitives of whole numbers whose result is known where their arguments are: limits of loops."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of one call of a program, summed over all devices."""

    matrix: int = 0
    """Those of matrix products and convolutions outside of attention kernels."""

    attention: int = 0
    """Those of attention kernels: splash, cuDNN, and other Pallas kernels."""

    bounds: tuple[str, ...] = ()
    """What was counted as an upper bound, in words."""

    uncounted: tuple[str, ...] = ()
    """What was not counted, or counted too low, in words."""

    @property
    def total(self) -> int:
        """FLOPs of all kinds."""
        return self.matrix + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        notes = (tuple(dict.fromkeys(a + b)) for a, b in zip(self._notes, other._notes, strict=True))
        return Flops(self.matrix + other.matrix, self.attention + other.attention, *notes)

    def times(self, n: int) -> "Flops":
        """The FLOPs of n such programs."""
        return Flops(self.matrix * n, self.attention * n, *self._notes)

    @property
    def _notes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.bounds, self.uncounted


def flops_of(closed: core.ClosedJaxpr) -> Flops:
    """The FLOPs of a jaxpr, such as `jitted.trace(*args).jaxpr`, over all devices.

    What no result depends on does not count, as XLA removes it: recomputation leaves such equations in the jaxpr.
    """
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return _of_jaxpr(jaxpr, dict(zip(jaxpr.constvars, closed.consts, strict=True)))


Known = Mapping[core.Var, Any]
"""Variables whose value is a constant, with that value."""


def _of_jaxpr(jaxpr: core.Jaxpr, known: Known) -> Flops:
    total, known = Flops(), dict(known)
    for eqn in jaxpr.eqns:
        total += _of_equation(eqn, known)
        _fold(eqn, known)
    return total


def _of_equation(eqn: core.JaxprEqn, known: Known) -> Flops:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return Flops(_of_product(eqn))
    if name == "conv_general_dilated":
        return Flops(_of_convolution(eqn))
    if (products := CUDNN_PRODUCTS.get(name.removesuffix("_wrapper"))) is not None:
        return Flops(attention=products * _of_scores(eqn))
    if name == "pallas_call":
        return _of_pallas(eqn, known)
    if name == "scan":
        constant = _passed(eqn.invars[: params["num_consts"]], params["jaxpr"], known)
        return _of_jaxpr(params["jaxpr"].jaxpr, constant).times(params["length"])
    if name == "while":
        return _of_while(eqn, known)
    if name == "cond":
        cases = [_of_jaxpr(case.jaxpr, _passed(eqn.invars[1:], case, known)) for case in params["branches"]]
        return max(cases, key=lambda case: case.total)
    if name == "shard_map":
        devices = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        return _of_jaxpr(params["jaxpr"], _passed(eqn.invars, params["jaxpr"], known)).times(devices)
    if name in OPAQUE:
        return Flops(uncounted=(f"the primitive {name}",))
    inner = [_of_jaxpr(_open(jaxpr), _passed(eqn.invars, jaxpr, known)) for jaxpr in _jaxprs(params)]
    return sum(inner, Flops())


def _of_product(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)


def _of_convolution(eqn: core.JaxprEqn) -> int:
    kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
    out_features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * out.size * kernel.size // out_features


def _of_scores(eqn: core.JaxprEqn) -> int:
    """FLOPs of one product of queries and keys in cuDNN's attention, whose arguments are [B T H E] or [B H T E]."""
    q, k = (x.aval.shape for x in eqn.invars[:2])
    transposed = int(eqn.params.get("layout", 0)) == 1
    time = 2 if transposed else 1
    return 2 * math.prod(q) * k[time]


def _of_pallas(eqn: core.JaxprEqn, known: Known) -> Flops:
    """Steps of a kernel's grid that compute something, times the products of its body."""
    grid = eqn.params["grid_mapping"].grid
    title = str(eqn.params.get("name") or "a Pallas kernel")
    body = _of_jaxpr(_open(eqn.params["jaxpr"]), {})
    if not body.total:
        return Flops(uncounted=body.uncounted)
    if not all(isinstance(size, int) for size in grid):
        return Flops(uncounted=(*body.uncounted, f"{title}, a kernel with a grid that is not constant"))
    steps, bounds = math.prod(grid), body.bounds
    mask = _lookup(eqn.invars[1], known) if title.startswith("splash") else None
    if mask is not None:  # 0 for a block that the kernel skips; on several devices, the mean of their parts
        steps = round(steps * np.count_nonzero(mask) / np.size(mask))
    else:
        bounds = (*bounds, f"{title}, as if every step of its grid computed something")
    return Flops(0, body.total * steps, bounds, body.uncounted)


def _of_while(eqn: core.JaxprEqn, known: Known) -> Flops:
    params = eqn.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    constants, start = eqn.invars[n_cond : n_cond + n_body], eqn.invars[n_cond + n_body :]
    body = _of_jaxpr(params["body_jaxpr"].jaxpr, _passed(constants, params["body_jaxpr"], known))
    if not body.total:
        return body
    condition = dict(_passed(eqn.invars[:n_cond], params["cond_jaxpr"], known))
    unchanged, steps = _carried(params["body_jaxpr"].jaxpr, n_body)
    begin = [_lookup(x, known) for x in start]
    carry = params["cond_jaxpr"].jaxpr.invars[n_cond:]
    condition |= {
        x: value for x, value, same in zip(carry, begin, unchanged, strict=True) if same and value is not None
    }
    counters = dict(zip(carry, zip(begin, steps, strict=True), strict=True))
    limits = list(_limits(params["cond_jaxpr"].jaxpr, condition, counters))
    where = str(eqn.source_info.name_stack) or "a while loop"
    if not limits:
        note = f"turns of a loop after the first ({where}): their number is not a constant"
        return body + Flops(uncounted=(note,))
    turns = min(turns for turns, _ in limits)
    exact = len(params["cond_jaxpr"].jaxpr.eqns) == 1 and limits[0][1]
    note = () if exact else (f"turns of a loop ({where}), which may end before its limit of {turns}",)
    return body.times(turns) + Flops(bounds=note)


def _carried(body: core.Jaxpr, n_constants: int) -> tuple[list[bool], list[int | None]]:
    """Which values a loop carries unchanged, and by which constant it increases the others."""
    carry = body.invars[n_constants:]
    unchanged = [out is x for out, x in zip(body.outvars, carry, strict=True)]
    steps: list[int | None] = [None] * len(carry)
    for eqn in body.eqns:
        if eqn.primitive.name == "add" and eqn.outvars[0] in body.outvars:
            place = body.outvars.index(eqn.outvars[0])
            added = [x for x in eqn.invars if x is not carry[place]]
            if len(added) == 1 and isinstance(added[0], core.Literal) and np.ndim(added[0].val) == 0:
                steps[place] = int(added[0].val)
    return unchanged, steps


def _limits(condition: core.Jaxpr, known: Known, counters: Mapping[core.Var, tuple]) -> Iterator[tuple[int, bool]]:
    """Numbers of turns after which a comparison of a condition ends the loop, and whether the start is a constant."""
    for eqn in condition.eqns:
        if eqn.primitive.name not in ("lt", "le", "gt", "ge"):
            continue
        left, right = eqn.invars
        counter, bound = (left, right) if eqn.primitive.name in ("lt", "le") else (right, left)
        limit = _lookup(bound, known)
        if isinstance(counter, core.Literal) or counter not in counters or limit is None or np.ndim(limit):
            continue
        start, step = counters[counter]
        if step is not None and step > 0:
            last = int(limit) + (eqn.primitive.name in ("le", "ge"))
            yield max(0, -(-(last - int(start or 0)) // step)), start is not None


def _fold(eqn: core.JaxprEqn, known: dict[core.Var, Any]) -> None:
    """Adds the result of an equation to the known values where it is a whole number that follows from them."""
    function, out = FOLDED.get(eqn.primitive.name), eqn.outvars
    if function is None or getattr(out[0].aval, "ndim", 1) or not np.issubdtype(out[0].aval.dtype, np.integer):
        return
    values = [_lookup(x, known) for x in eqn.invars]
    if all(value is not None for value in values):
        known[out[0]] = function(*values)


def _lookup(x: core.Var | core.Literal, known: Known) -> Any:
    return x.val if isinstance(x, core.Literal) else known.get(x)


def _passed(args: list, inner: Any, known: Known) -> Known:
    """Known values under the names that they have in an inner jaxpr, of which `args` are the first arguments."""
    jaxpr = _open(inner)
    own = dict(zip(jaxpr.constvars, getattr(inner, "consts", ()), strict=False))
    if len(args) > len(jaxpr.invars):
        return own
    values = ((x, _lookup(arg, known)) for x, arg in zip(jaxpr.invars, args, strict=False))
    return own | {x: value for x, value in values if value is not None}


def _open(jaxpr: Any) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.Jaxpr | core.ClosedJaxpr):
                yield each
