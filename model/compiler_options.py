"""Options of XLA's compiler for the programs of a step: defaults by platform, and a run's own.

`camelid plan` shows what an option changes, also for devices that are not there. On CPUs no option is set.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..errors import UserError
from .sharding import platform_of

Option = bool | int | float | str

DEFAULTS: dict[str, dict[str, Option]] = {
    "cpu": {},
    "gpu": {},  # collectives are asynchronous there, and the scheduler hides them, without an option
    "tpu": {
        # An all-gather over three dimensions of a torus stays one; XLA alone makes an all-reduce of twice the bytes.
        "xla_tpu_prefer_async_allgather_to_allreduce": True,
        "xla_enable_async_all_gather": True,
        # All-gathers run beside the matrix products that come before their use. Those above do nothing without these.
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        # All-reduces stay synchronous: https://github.com/jax-ml/jax/issues/38741 reports wrong numbers where they run
        # beside computation too, with sequence parallelism on v6e.
    },
}
"""{platform: {option: value}}. Chosen by plans with jax 0.10.2 and libtpu 0.0.42 (docs/scaling.md), not on TPUs."""


def compiler_options(mesh: jax.sharding.Mesh, own: Mapping[str, Option]) -> dict[str, Option]:
    """The options of a step's programs.

    Args:
      mesh: the devices, which need not be there.
      own: options that are added to `DEFAULTS` of the platform, or stand in their place. "default" leaves an option to
        XLA. "true" and "false" are True and False, since XLA's own flags are written so.

    Raises UserError for an option that the compiler does not take.
    """
    options = DEFAULTS[platform_of(mesh.devices.flat[0])] | dict(own)
    options = {name: _VALUES.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    options = {name: value for name, value in options.items() if value is not None}
    if options:
        _check(mesh, options)
    return options


_VALUES = {"true": True, "false": False, "default": None}


def _check(mesh: jax.sharding.Mesh, options: Mapping[str, Option]) -> None:
    """Compiles a program that does nothing, with these options."""
    nothing = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        jax.jit(lambda x: x).lower(nothing).compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0].partition(": ")[2] or str(error)
        cure = "; --config.compiler_options.NAME=default leaves an option to XLA"
        raise UserError(f"config.compiler_options: XLA says: {said.rstrip('.: ')}{cure}") from None
