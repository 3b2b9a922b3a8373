"""What can be known of a run before anything is read or built: every leaf of its config, its devices."""

import importlib.util
from collections.abc import Mapping

import jax
import ml_collections

from ..errors import UserError
from ..train.leaves import check
from ..train.run import Evaluator, mesh_of
from ..train.settings import Settings, did_you_mean
from .recipes import RECIPES

KERNELS = {"splash": "tpu", "cudnn": "gpu"}
"""Implementations of attention that one kind of device has."""


def check_phases(
    phases: Mapping[str, ml_collections.ConfigDict], evaluators: Mapping[str, Evaluator], *, here: bool = True
) -> None:
    """Raises UserError, with the phase where there are several, as `check_config` does."""
    for name, config in phases.items():
        try:
            check_config(config, evaluators, here=here)
        except UserError as error:
            raise UserError(f"phase {name}: {error}" if name else str(error)) from None


def check_config(config: ml_collections.ConfigDict, evaluators: Mapping[str, Evaluator], *, here: bool = True) -> None:
    """Raises UserError for a config that its recipe cannot run, as far as that is known without data or weights. here:
    whether it is to run on this machine, which then has to have what it asks for."""
    recipe = config.get("recipe")
    if recipe not in RECIPES:
        raise UserError(
            f"config.recipe: {recipe!r} is none of {', '.join(RECIPES)}{did_you_mean(str(recipe), RECIPES)}"
        )
    check("config", config, RECIPES[recipe].sections)
    for name, section in config.evals.items():
        if name not in evaluators:
            near = did_you_mean(name, evaluators)
            raise UserError(f"config.evals.{name}: there is no such evaluation, only {', '.join(evaluators)}{near}")
        check(f"config.evals.{name}", section, evaluators[name])
    if here:
        _check_machine(config)


def _check_machine(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where this machine lacks the devices or the packages that a config asks for."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.wandb = {config.wandb!r} asks for Weights & Biases, which is missing: pip install wandb"
        )
    mesh, attention, backend = mesh_of(Settings(config)), config.model.attention, jax.default_backend()
    if attention in KERNELS and backend != KERNELS[attention]:
        raise UserError(
            f"config.model.attention = {attention!r}: a kernel for {KERNELS[attention].upper()}s, and the devices here "
            f"are of the kind {backend}: give auto or xla"
        )
    multiple = 128 * mesh.shape["context"]
    if attention == "splash" and "seq_len" in config.data and config.data.seq_len % multiple:
        raise UserError(f"config.data.seq_len = {config.data.seq_len}: splash attention takes multiples of {multiple}")
    if attention == "cudnn" and config.model.dtype == "float32":
        raise UserError("config.model.attention = 'cudnn' takes 16-bit numbers: set config.model.dtype=bfloat16")
