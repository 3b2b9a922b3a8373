"""The command `camelid sweep`."""

import argparse
import json
import shlex
from pathlib import Path

from ...errors import UserError
from ..outputs import check_home, output_folder
from .arguments import add_config, add_log_level, check_least, command, set_log_level

RUNNING = (
    *("config", "space", "objective", "at", "trials", "method", "seed", "prune", "min_evaluations", "reduction"),
    *("workers", "vmap", "retries", "retry_failed", "keep_going", "no_wait", "detach"),
)
"""The options that a command needs or reads which runs trials."""


def add_sweep(commands) -> None:
    """Adds `camelid sweep`."""
    parser = command(
        commands,
        "sweep",
        _sweep,
        "Train with many settings and compare. The same command continues a sweep, also from several machines at once.",
        "camelid sweep --config=configs/sft/primer.py:steps=300 --space='optim.lr=log(1e-4,1e-2) seed={0,1,2}' \\\n"
        "  --objective=eval/heldout/primer/loss:min --trials=24 --workdir=runs/lr",
    )
    add_config(parser, required=False)
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder of the sweep; DIR/trials/0007 is the run directory of trial 7",
    )
    parser.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="SPACE",
        help="settings that vary, in quotes: 'optim.lr=log(1e-4,1e-2) optim.weight_decay=uniform(0,0.1) "
        "model.n_layers=int(2,8) optim.kind={adamw,muon} :rank={4,8} seed={0,1,2}', or a file with a setting a line; "
        "each point is run with every seed",
    )
    parser.add_argument(
        "--objective",
        metavar="METRIC:min|max",
        help="metric of metrics.jsonl to minimise or maximise, such as eval/heldout/text/loss:min",
    )
    parser.add_argument(
        "--at",
        choices=("last", "best"),
        default="last",
        help="value of a trial: its last evaluation, or its best one after the first step (default: last)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="number of trials in total, with those of earlier commands (default: all points of a grid)",
    )
    _add_method(parser)
    _add_working(parser)
    parser.add_argument(
        "--storage",
        default="journal",
        metavar="KIND",
        help="where trials are noted: journal, a file for one or several machines; sqlite, a file for one machine; or "
        "the URL of a database such as postgresql://user:password@host/name (default: journal)",
    )
    shows = parser.add_mutually_exclusive_group()
    shows.add_argument("--show", action="store_true", help="print the results of the sweep so far, and run nothing")
    shows.add_argument(
        "--stop",
        action="store_true",
        help="ask the workers of the sweep, on all machines, to save their trials and end",
    )
    shows.add_argument(
        "--page",
        action="store_true",
        help="write the report of the sweep so far into DIR/report.html, which a running sweep writes too; run nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --show: print the results as JSON")
    add_log_level(parser)


def _add_method(parser: argparse.ArgumentParser) -> None:
    """Adds the options of how points are chosen and trials ended early."""
    parser.add_argument(
        "--method",
        choices=("grid", "random", "tpe"),
        help="how points are chosen: grid, all in order; random; tpe, near good ones (default: grid where all settings "
        "are choices, else tpe)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the points that random and tpe draw (default: 0)"
    )
    parser.add_argument(
        "--prune",
        choices=("none", "hyperband"),
        default="none",
        help="end trials early that do worse than others at the same evaluation, by asynchronous Hyperband "
        "(default: none)",
    )
    parser.add_argument(
        "--min_evaluations",
        type=int,
        default=1,
        metavar="N",
        help="with --prune: evaluations after the first step that every trial has (default: 1)",
    )
    parser.add_argument(
        "--reduction",
        type=int,
        default=3,
        metavar="N",
        help="with --prune: of N trials at a rung one goes on, and the next rung is N times as far (default: 3)",
    )


def _add_working(parser: argparse.ArgumentParser) -> None:
    """Adds the options of how this process works on a sweep."""
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="number of trials at a time; they divide the GPUs or chips of this machine (default: 1)",
    )
    parser.add_argument(
        "--vmap",
        type=int,
        nargs="?",
        const=8,
        metavar="N",
        help="each worker trains up to N trials (8 if N is left out) in one program, for small networks; those of a "
        "program differ in seed and scalars of the optimiser alone (default: one trial a worker)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="number of times that a trial that was killed is resumed before it counts as failed (default: 3)",
    )
    parser.add_argument("--retry_failed", action="store_true", help="run the trials again that have failed so far")
    parser.add_argument(
        "--keep_going",
        action="store_true",
        help="count a trial that cannot begin as failed, also the first one, which else ends the sweep",
    )
    parser.add_argument(
        "--no_wait",
        action="store_true",
        help="end when nothing is left to begin; else wait for trials of other workers, to take over those that die",
    )
    parser.add_argument(
        "--detach", action="store_true", help="check everything, then go on in the background, with DIR/sweep.log"
    )


def _sweep(args: argparse.Namespace) -> int:
    if "://" in args.workdir:
        raise UserError(f"--workdir={args.workdir}: a sweep needs a folder of a file system, for its locks")
    output_folder(args.workdir)
    check_home(args.workdir)
    args.workdir = Path(args.workdir).expanduser()  # a shell leaves ~ as it is after =
    if args.json and not args.show:
        raise UserError("--json does nothing without --show")
    instead = {"show": _show, "stop": _stop, "page": _page}
    if given := next((name for name in instead if getattr(args, name)), None):
        for name in RUNNING:
            if getattr(args, name) != args.parser.get_default(name):
                raise UserError(f"--{name} does nothing with --{given}: leave it out")
        return instead[given](args)
    from ..sweeps.stopping import asked_before

    mark = asked_before(args.workdir)  # before anything that takes time
    set_log_level(args)
    asked, options = asked_of(args), _options(args, mark)
    from ..sweeps import start

    sweep, study = start.begin(asked)
    if args.detach:
        pid = start.detach(sweep, [word for word in args.argv if word != "--detach"], mark)
        print(f"the sweep goes on in process {pid}; its lines are in {sweep.folder / 'sweep.log'}")
        print(f"camelid sweep --workdir={shlex.quote(str(args.workdir))} --show tells its state, and --stop ends it")
        return 0
    results = start.run(sweep, study, options)
    return 0 if results.best is not None else 1


def asked_of(args: argparse.Namespace):
    """What the options ask for. Raises UserError for options that are missing or do nothing."""
    for name, example in {
        "config": "FILE",
        "space": "'optim.lr=log(1e-4,1e-2)'",
        "objective": "eval/heldout/text/loss:min",
    }.items():
        if not getattr(args, name):
            raise UserError(f"give --{name}={example}; or --show, to see a sweep that exists")
    check_least(args, trials=1, seed=0, min_evaluations=1, reduction=2)
    if args.prune == "none":
        for name in ("min_evaluations", "reduction"):
            if getattr(args, name) != args.parser.get_default(name):
                raise UserError(f"--{name} does nothing without --prune=hyperband")
    from ..sweeps.identity import Pruning
    from ..sweeps.space import read_space
    from ..sweeps.start import Asked

    return Asked(
        folder=Path(args.workdir),
        config=args.config,
        overrides=tuple(args.overrides),
        space=read_space(args.space),
        objective=args.objective,
        at=args.at,
        trials=args.trials,
        method=args.method,
        seed=args.seed,
        prune=None if args.prune == "none" else Pruning(args.min_evaluations, args.reduction),
        storage=args.storage,
        command=tuple(args.argv),
        vmap=args.vmap is not None,
    )


def _options(args: argparse.Namespace, stop_mark: int):
    """How this process works on the sweep."""
    check_least(args, workers=1, retries=0, vmap=2)
    from ..sweeps.workers import Options

    return Options(
        workers=args.workers,
        retries=args.retries,
        retry_failed=args.retry_failed,
        keep_going=args.keep_going,
        wait=not args.no_wait,
        stop_mark=stop_mark,
        vmap=args.vmap,
    )


def _results(args: argparse.Namespace):
    """The results of the sweep so far."""
    from ..sweeps.results import read_results

    return read_results(args.workdir, url=None if args.storage == "journal" else args.storage)


def _page(args: argparse.Namespace) -> int:
    from ..sweeps.page import write_page

    print(write_page(_results(args)))
    return 0


def _show(args: argparse.Namespace) -> int:
    from ..sweeps.results import as_json, summary
    from ..sweeps.start import print_results

    results = _results(args)
    if args.json:
        print(json.dumps(as_json(results), indent=2, ensure_ascii=False))
        return 0
    print(summary(results))
    print_results(results)
    return 0


def _stop(args: argparse.Namespace) -> int:
    from ..sweeps.identity import read_sweep
    from ..sweeps.stopping import ask

    sweep = read_sweep(args.workdir)
    ask(sweep.folder)
    print(f"the workers of {sweep.folder} save their trials and end; the sweep's own command goes on later")
    return 0
