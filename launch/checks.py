"""What can be known of a run before anything is read or built: every leaf of its config, its devices."""

import importlib.util
from collections.abc import Mapping

import ml_collections

from ..data.errors import UserError
from ..train.fit import Evaluator
from ..train.leaves import check
from ..train.settings import Settings, did_you_mean
from ..train.setup import mesh_of
from .recipes import RECIPES


def check_phases(phases: Mapping[str, ml_collections.ConfigDict], evaluators: Mapping[str, Evaluator]) -> None:
    """Raises UserError, with the phase where there are several, for the first leaf that cannot be meant."""
    for name, config in phases.items():
        try:
            check_config(config, evaluators)
        except UserError as error:
            raise UserError(f"phase {name}: {error}" if name else str(error)) from None


def check_config(config: ml_collections.ConfigDict, evaluators: Mapping[str, Evaluator]) -> None:
    """Raises UserError for a config that its recipe cannot run, as far as that is known without data or weights."""
    recipe = config.get("recipe")
    if recipe not in RECIPES:
        raise UserError(
            f"config.recipe: {recipe!r} is none of {', '.join(RECIPES)}{did_you_mean(str(recipe), RECIPES)}"
        )
    check("config", config, RECIPES[recipe].sections)
    for name, section in config.evals.items():
        if name not in evaluators:
            raise UserError(f"config.evals.{name}: there is no such evaluation, only {', '.join(evaluators)}")
        check(f"config.evals.{name}", section, evaluators[name])
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.wandb = {config.wandb!r} asks for Weights & Biases, which is missing: pip install wandb"
        )
    mesh_of(Settings(config))
