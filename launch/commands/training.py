"""The commands `camelid train` and `camelid quickstart`."""

import argparse

from .arguments import add_config, add_log_level, check_least, command, keep_programs, set_log_level
from .distributed_arguments import add_distributed, check_distributed, joined_processes


def add_train(commands) -> None:
    """Adds `camelid train`."""
    parser = command(
        commands,
        "train",
        _train,
        "Train a model as a config file says. The same command resumes a run that was cut off.",
        "camelid train --config=configs/sft/primer.py:steps=300 --config.optim.lr=1e-3 --workdir=runs/sft",
    )
    add_config(parser)
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="run directory, for checkpoints, metrics and samples"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="before training, compile the step and refuse one that does not fit into the memory of the devices "
        "(camelid plan trains nothing)",
    )
    add_distributed(parser, "train")
    add_log_level(parser)


def _train(args: argparse.Namespace) -> None:
    set_log_level(args)
    check_distributed(args)
    with joined_processes(args):
        from ...evals.registry import Evaluations
        from ...settings.config_files import load_phases
        from ..outputs import output_folder
        from ..phases import run

        keep_programs()
        phases = load_phases(args.config, args.overrides)
        if args.plan:
            from ..plans.check import check_fits

            check_fits(phases)
        run(phases, output_folder(args.workdir), Evaluations())


def add_quickstart(commands) -> None:
    """Adds `camelid quickstart`."""
    parser = command(
        commands,
        "quickstart",
        _quickstart,
        "Train a small English and Chinese assistant from scratch on built-in data, from the tokenizer to PPO.",
    )
    parser.add_argument(
        "--workdir",
        default="runs/quickstart",
        metavar="DIR",
        help="directory for the runs of all stages and the report (default: runs/quickstart)",
    )
    for stage in ("pretrain", "sft", "reward", "ppo"):
        parser.add_argument(
            f"--{stage}_steps",
            type=int,
            metavar="N",
            help=f"number of steps of the stage {stage} (default: as in configs/{stage}/primer.py)",
        )
    parser.add_argument(
        "--pair_prompts",
        type=int,
        metavar="N",
        help="number of prompts that are answered for preference pairs (default: 3000)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of PPO (default: 0)")
    add_log_level(parser)


def _quickstart(args: argparse.Namespace) -> None:
    from ..outputs import output_folder
    from ..quickstart import PAIR_PROMPTS, Steps, quickstart

    set_log_level(args)
    check_least(args, pair_prompts=1)
    keep_programs()
    prompts = PAIR_PROMPTS if args.pair_prompts is None else args.pair_prompts
    steps = Steps(args.pretrain_steps, args.sft_steps, args.reward_steps, args.ppo_steps, prompts)
    quickstart(output_folder(args.workdir), steps, seed=args.seed)
