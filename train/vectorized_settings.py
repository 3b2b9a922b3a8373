"""Settings in which runs of one compiled program may differ.

A program takes scalars as arguments where its members differ in them. All other settings decide which program it is, or
concern what happens around it.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError, shown
from ..settings.sections import to_config
from .run_config import RunConfig

SCALARS = (
    "seed",
    "optim.lr",
    "optim.weight_decay",
    "optim.clip_norm",
    "optim.b1",
    "optim.b2",
    "optim.eps",
    "optim.momentum",
    "optim.decay_rate",
    "optim.clipping_threshold",
    "schedule.final",
    "ema_decay",
    "guard.spike_sigma",
    "guard.warmup_steps",
    "z_loss",
)
"""Leaves that a program may take as arguments. A leaf that is None in one member and a number in another makes two
programs."""

AROUND = re.compile(r"init_from|guard\.max_streak|(early_stopping|checkpoint)\..*")
"""Leaves that may differ because the program knows nothing of them."""

Scalars = dict[str, np.ndarray]
"""Values by the names of leaves: scalars of one member, or arrays with a value of each member."""


def program_of(config: RunConfig) -> str:
    """What is the same in the configs of all members of a program, as a string."""
    leaves = {name: value for name, value in _leaves(config).items() if not AROUND.fullmatch(name)}
    return json.dumps(leaves | {name: "a number" for name in SCALARS if leaves.get(name) is not None}, default=str)


def scalars_of(configs: Sequence[RunConfig]) -> Scalars:
    """The leaves of `SCALARS` in which configs differ, each as an array with the value of each config.

    Raises UserError if the configs do not belong to one program; the message names the leaf with its values.
    """
    every = [_leaves(config) for config in configs]
    names = dict.fromkeys(name for leaves in every for name in leaves)
    differ = {name: [leaves.get(name) for leaves in every] for name in names if not AROUND.fullmatch(name)}
    differ = {name: values for name, values in differ.items() if any(value != values[0] for value in values)}
    for name, values in sorted(differ.items(), key=lambda leaf: leaf[0] in SCALARS):  # an optimiser before its defaults
        if name not in SCALARS or any(value is None for value in values):
            other = next(value for value in values if value != values[0])
            raise UserError(
                f"config.{name} = {shown(values[0])} and {shown(other)}: runs of one program have the same value; they "
                f"may differ in {', '.join(SCALARS)}"
            )
    return {name: _array(values) for name, values in differ.items()}


def with_scalars(config: RunConfig, scalars: Mapping[str, Any]) -> RunConfig:
    """A config with other values of leaves, which may be JAX arrays. They are not checked."""
    for name, value in scalars.items():
        config = _replaced(config, name.split("."), value)
    return config


def _array(values: Sequence[float | int]) -> np.ndarray:
    """Values as JAX takes them from Python: whole numbers of 32 bits, of which seeds keep the last ones."""
    whole = all(isinstance(value, int) for value in values)
    return np.array(values, np.int64).astype(np.int32) if whole else np.array(values, np.float32)


def _replaced(section: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    new = _replaced(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: new})


def _leaves(config: RunConfig) -> dict[str, Any]:
    """The leaves of a config by their dotted names, with the optimiser's arguments that the config leaves to it."""
    arguments = {f"optim.{name}": value for name, value in config.optim.arguments().items()}
    return dict(_flat(to_config(config), "")) | arguments


def _flat(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) or hasattr(value, "to_dict"):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
