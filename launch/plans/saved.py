"""What a step keeps from its forward pass for its backward pass, counted in its jaxpr."""

from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend import core


def saved_bytes(closed: core.ClosedJaxpr) -> int:
    """The most bytes that one loop of a program keeps for later, over all its turns: with a loop over layers, what the
    forward pass keeps for the backward pass."""
    most = 0
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "scan":
            kept = eqn.outvars[eqn.params["num_carry"] :]
            most = max(most, sum(x.aval.size * x.aval.dtype.itemsize for x in kept))
        most = max([most, *(saved_bytes(inner) for inner in _inner(eqn.params))])
    return most


def _inner(params: Mapping[str, Any]) -> Iterator[core.ClosedJaxpr]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each
            elif isinstance(each, core.Jaxpr):
                yield core.ClosedJaxpr(each, ())
