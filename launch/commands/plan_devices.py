"""The devices that `camelid plan` compiles for."""

import os
from typing import Any


def devices_of(name: str) -> Any:
    """The topology of a name (`launch/plans/topologies.py`). JAX must not have started a backend."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read where JAX is imported; XLA warns of slow compiling
    from ..plans.topologies import LOCAL, environment_for, topology

    os.environ.update(environment_for(name))
    import jax

    if name != LOCAL:
        jax.config.update("jax_platforms", "cpu")
    return topology(name)
