"""Checks of a command before a job with it is submitted, so that a mistake costs no time in a queue."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import UserError, did_you_mean

if TYPE_CHECKING:  # which would load JAX
    from ..inputs import Missing

ON_A_TERMINAL = ("chat", "launch")
"""Commands that no job can run."""


def check_command(commands: Any, words: Sequence[str]) -> argparse.Namespace:
    """Parses the command of a job, and checks its config file; nothing is written.

    Args:
      commands: argparse's subparsers with all commands of camelid.
      words: the words after `camelid`.

    Raises:
      UserError: the command cannot be run, as far as that is known without data, weights and devices.
    """
    if not words:
        raise UserError("no command is given: add one after --, as in: camelid launch --on=slurm -- train --config=...")
    name, *rest = words
    if name not in commands.choices or name in ON_A_TERMINAL:
        near = did_you_mean(name, [choice for choice in commands.choices if choice not in ON_A_TERMINAL])
        raise UserError(f"`camelid {name}` cannot be launched{near}")
    args, others = commands.choices[name].parse_known_args(rest)
    args.argv = list(words)
    args.overrides = [word for word in others if word.startswith("--config.")]
    stray = [word for word in others if word not in args.overrides]
    if stray or (args.overrides and getattr(args, "config", None) is None):
        hint = "see its --help" if stray else "it has no --config=FILE"
        raise UserError(f"`camelid {name}` takes no {(stray or args.overrides)[0]} ({hint})")
    from ..commands.distributed_arguments import DISTRIBUTED

    for option in DISTRIBUTED:
        if getattr(args, option, None):
            raise UserError(f"`camelid {name} --{option}`: leave it out: the job gives it to each of its processes")
    if name == "train":
        from ...evals.registry import Evaluations
        from ...settings.config_files import load_phases
        from ..checks import check_phases

        check_phases(load_phases(args.config, args.overrides), Evaluations(), here=False)
    if name == "sweep":
        _check_sweep(args)
    return args


def missing_inputs(args: argparse.Namespace) -> list["Missing"]:
    """What the config of a checked command reads and is not on this machine; empty for commands without a config.

    Args:
      args: what `check_command` returned.
    """
    if args.argv[0] not in ("train", "sweep"):
        return []
    from ...evals.registry import Evaluations
    from ...settings.config_files import load_phases
    from .. import inputs

    leave_out: frozenset[str] = frozenset()
    if args.argv[0] == "sweep":
        from ..commands.sweeping import asked_of

        leave_out = frozenset(asked_of(args).space.settings)
        if any(name.startswith(":") for name in leave_out):  # an argument of the config, which may name any input
            return []
    phases = load_phases(args.config, args.overrides)
    return inputs.missing_inputs(phases, Evaluations(), args.workdir, leave_out)


def _check_sweep(args: argparse.Namespace) -> None:
    """Raises UserError for options that a worker in a job cannot have, or a sweep that cannot run."""
    if args.show or args.stop or args.detach:
        given = next(option for option in ("show", "stop", "detach") if getattr(args, option))
        raise UserError(f"`camelid sweep --{given}` is not for a job: leave --{given} out, or give it without launch")
    if args.workers != args.parser.get_default("workers"):
        raise UserError(
            f"--workers={args.workers} stands after --: give it to launch, before --, which divides the workers"
        )
    from ..commands.sweeping import asked_of
    from ..sweeps.start import planned

    planned(asked_of(args))
