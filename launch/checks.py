"""Checks of a config before any data or weights are read: every leaf, and this machine's devices and packages."""

from collections.abc import Mapping

import ml_collections

from ..errors import UserError
from ..model.compiler_options import compiler_options
from ..model.sharding import compile_platform
from ..train.evaluations import Evaluator, chosen
from ..train.run import mesh_of
from ..train.run_config import RunConfig
from ..train.weights_and_biases import check_installed
from .recipes import read_config

KERNELS = {"splash": "tpu", "cudnn": "gpu"}
"""Implementations of attention that need one kind of device, with its platform."""


def check_phases(
    phases: Mapping[str, ml_collections.ConfigDict], evaluators: Mapping[str, Evaluator], *, here: bool = True
) -> None:
    """Checks all phases by `check_config`. Its UserError names the phase where there are several."""
    for name, config in phases.items():
        try:
            check_config(config, evaluators, here=here)
        except UserError as error:
            raise UserError(f"phase {name}: {error}" if name else str(error)) from None


def check_config(config: ml_collections.ConfigDict, evaluators: Mapping[str, Evaluator], *, here: bool = True) -> None:
    """Raises UserError for a config that its recipe cannot run, as far as that is known without data and weights.

    Args:
      config: the config of one run.
      evaluators: the evaluations that `config.evals` may name.
      here: whether the config will run on this machine, whose devices and packages are then checked too.
    """
    settings = read_config(config)
    chosen(settings.evals, evaluators)
    if here:
        _check_machine(settings)


def _check_machine(config: RunConfig) -> None:
    """Raises UserError if a config cannot run on this machine.

    Checks that wandb is installed if asked for, that the mesh fits the devices, that the compiler takes its options,
    and that the attention kernel supports the backend, the row length and the dtype.
    """
    check_installed(config.wandb)
    mesh, attention, platform = mesh_of(config.mesh), config.model.attention, compile_platform()
    compiler_options(mesh, config.compiler_options or {})
    if attention in KERNELS and platform != KERNELS[attention]:
        raise UserError(
            f"config.model.attention = {attention!r}: a kernel for {KERNELS[attention].upper()}s, and the devices here "
            f"are of the kind {platform}: give auto or xla"
        )
    multiple = 128 * mesh.shape["context"]
    length = getattr(config.data, "seq_len", 0)  # of prompts there is none
    if attention == "splash" and length % multiple:
        raise UserError(f"config.data.seq_len = {length}: splash attention takes multiples of {multiple}")
    if attention == "cudnn" and config.model.dtype == "float32":
        raise UserError("config.model.attention = 'cudnn' takes 16-bit numbers: set config.model.dtype=bfloat16")
