"""Refuses to start a run whose step does not fit into the memory of this machine's devices."""

from collections.abc import Mapping
from typing import Any

from ...data.console import tell
from ...errors import UserError
from .plan import Plan, plan_phases
from .search import flags, nearest_that_fits
from .topologies import local

GIB = 2**30


def check_fits(phases: Mapping[str, Any]) -> None:
    """Compiles the step of each phase for the devices of this machine, and tells the memory that it needs.

    Args:
      phases: the phases, as `settings.config_files.load_phases` gives them; they stay as they are.

    Raises UserError where a step needs more memory than a device has, with the nearest settings that fit.
    """
    copies = {name: config.copy_and_resolve_references() for name, config in phases.items()}
    devices = local()
    for found in plan_phases(copies, devices):
        where = f"phase {found.phase}: " if found.phase else ""
        peak, capacity = _size(found.memory.peak), "unknown" if found.capacity is None else _size(found.capacity)
        if found.fits is not False:
            tell(f"{where}planned in {found.compile_seconds:.0f} s: a step needs {peak} of {capacity} on a device")
            continue
        raise UserError(
            f"{where}a step needs {_needs(found)} on a device, which has {capacity}: "
            f"{_advice(copies[found.phase], devices, found)}"
        )


def _needs(found: Plan) -> str:
    told = not found.memory.refused or found.memory.needed_if_refused
    return _size(found.memory.peak) if told else f"more than there is ({found.memory.refused})"


def _advice(config: Any, devices: Any, found: Plan) -> str:
    """What to change, in words."""
    nearest = nearest_that_fits(config, devices, architecture=found.architecture)
    if nearest is None:
        return (
            "none of the remat policies and values of config.optim.accumulate that were tried fits; give more devices, "
            "or a smaller batch or model"
        )
    return f"with {flags(nearest.candidate, config)} it needs {_size(nearest.plan.memory.peak)}"


def _size(size: float) -> str:
    return f"{size / GIB:.3g} GiB"
