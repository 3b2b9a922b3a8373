"""The command `camelid serve`."""

import argparse
import contextlib
import math
import pathlib
import re
import sys
import urllib.parse
from collections.abc import Iterator, Sequence

from ...errors import UserError
from .arguments import MESH, add_model, check_least, command, load_model


def add_serve(commands) -> None:
    """Adds `camelid serve`."""
    parser = command(
        commands,
        "serve",
        _serve,
        "Serve a model over HTTP with OpenAI's protocol, and a page to chat on.",
        "camelid serve runs/sft --port=8000\ncamelid serve model.gguf --quantize=int8 --slots=4 --max_len=4096",
    )
    add_model(parser)
    parser.add_argument(
        "--name", metavar="NAME", help="the model's name for clients (default: the last part of its path)"
    )
    parser.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="runs or PEFT folders of low-rank adapters on the model, which clients choose by their names",
    )
    add_address(parser, port=8000)
    parser.add_argument(
        "--slots", type=int, default=8, metavar="N", help="number of answers that are written at a time (default: 8)"
    )
    parser.add_argument(
        "--max_len",
        type=int,
        metavar="N",
        help="most tokens of a prompt and its answer together (default: the model's context)",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=32,
        metavar="N",
        help="tokens of a prompt that are read between two tokens of the other answers, a power of two (default: 32)",
    )
    parser.add_argument(
        "--kept_chunks",
        type=int,
        metavar="N",
        help="chunks of prompts that are kept for later requests (default: as many as the slots hold)",
    )
    parser.add_argument(
        "--most_waiting",
        type=int,
        default=256,
        metavar="N",
        help="answers that may wait for a slot; further requests get status 429 (default: 256)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that an answer waits before one that has had a slot for as long makes room, to go on later; inf: "
        "it waits until another ends (default: 30)",
    )
    parser.add_argument(
        "--exact",
        choices=("on", "off"),
        default="on",
        help="on: an answer is the same bits in any company; off: one that is written alone comes faster, and its "
        "log-probabilities differ by rounding (default: on)",
    )
    parser.add_argument("--log_text", action="store_true", help="write prompts and answers to the log (default: off)")
    parser.add_argument(
        "--pooling",
        choices=("mean", "last"),
        default="mean",
        help="embeddings are the mean of the states of a text's tokens, or the last token's state (default: mean)",
    )
    parser.add_argument("--api_key", metavar="KEY", help="key that clients must send (default: none is asked for)")
    add_drain(parser)
    parser.add_argument(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help="number of processes that serve the model, each on devices of its own, or on CPU with the same cores; a "
        "router on --port sends requests to them (default: 1, without a router)",
    )


def _serve(args: argparse.Namespace) -> int:
    check_least(args, slots=1, max_len=2, chunk=1, kept_chunks=0, most_waiting=1, replicas=1)
    _check_shared(args)
    if not args.patience >= 0:
        raise UserError(f"--patience={args.patience}: give 0 or more seconds, or inf")
    if args.chunk & (args.chunk - 1):
        raise UserError(f"--chunk {args.chunk}: give a power of two")
    if args.replicas > 1:
        return _serve_replicas(args)
    with _installed("serve"):
        from ...serve.api import Server, log, make_app
        from ...serve.listen import Listener, bind, listen, log_requests, say_ready

    with bind(args.host, args.port) as bound:
        server = Server(_served(args), api_key=args.api_key, log_text=args.log_text, pooling=args.pooling)
        log_requests(log)
        listen(bound)
        say_ready(bound)
        Listener(make_app(server), server, args.drain_seconds).run(sockets=[bound])
    return 0


def _served(args: argparse.Namespace) -> dict:
    """The model and its adapters as `Server` takes them, by their names, with an engine that is compiled."""
    from ...serve.completions import Served
    from ...serve.engine import Engine

    model = load_model(args)
    if model.tokenizer is None:
        raise UserError(f"{args.path} has no tokenizer, and cannot be served")
    if args.max_len is not None and args.max_len > (context := model.config.max_len):
        raise UserError(f"--max_len {args.max_len}: give 2 to the model's context of {context:,} tokens")
    name = args.name or pathlib.PurePath(args.path).name
    adapters = _adapters(model, name, args.adapters)
    engine = Engine(
        model,
        rows=args.slots,
        max_len=args.max_len,
        chunk=args.chunk,
        blocks=args.kept_chunks,
        most_waiting=args.most_waiting,
        patience=args.patience,
        adapters=adapters,
        exact=args.exact == "on",
        report=_report,
    )
    served = {name: Served(name, model, engine, {})}
    return served | {other: Served(other, adapted, engine, {}, parent=name) for other, adapted in adapters.items()}


CHILD = "import sys; from camelid.serve.replicas import end_with_parent; end_with_parent(); \
from camelid.launch.cli import main; sys.exit(main())"
"""What a replica's process runs, with the arguments of the command."""


def _serve_replicas(args: argparse.Namespace) -> int:
    """Serves a model with several processes behind a router."""
    with _installed("serve"):
        from ...model.host_devices import divide, host_devices
        from ...serve.backends import Backend
        from ...serve.listen import Listener, bind, listen, say_ready
        from ...serve.replicas import PYTHON, Replicas, reason
        from ...serve.router import Router, make_router

    devices = math.prod(getattr(args, f"mesh.{axis}") or 1 for axis in MESH)
    bound = bind(args.host, args.port)
    variables = divide(host_devices(), args.replicas, devices, f"--replicas={args.replicas}")
    listen(bound)
    own = ["--replicas=1", "--host=127.0.0.1", "--port=0"]  # they stand last, and so count
    router = Router([Backend(f"replica {i}") for i in range(args.replicas)], key=args.api_key)
    listener = Listener(make_router(router), router, args.drain_seconds)
    replicas = Replicas(
        [*PYTHON, "-c", CHILD, *args.argv, *own],
        variables,
        router.backends,
        failed=lambda: setattr(listener, "should_exit", True),
        ready=lambda: say_ready(bound),
    )
    at_once = True
    try:
        replicas.start()
        listener.run(sockets=[bound])
        at_once = listener.force_exit
    finally:
        replicas.stop(at_once=at_once)
    if replicas.failure is None:
        return 0
    if replicas.failure[0] == 2:
        raise UserError(reason(replicas.failure))
    print(f"camelid: {reason(replicas.failure)}", file=sys.stderr, flush=True)
    return 1


def _adapters(model, name: str, given: Sequence[str]) -> dict:
    """The `LanguageModel` with each of the adapters that `--adapters` gives. name: the model's own name."""
    found = {}
    for each in given:
        other, _, path = each.partition("=")
        if not other or not path:
            raise UserError(f"--adapters {each}: give a name and a path, as in poet=runs/poet")
        if other == name or other in found:
            raise UserError(f"--adapters {each}: there is a model {other} already, give another name")
        found[other] = model.with_adapters(path)
    return found


def add_router(commands) -> None:
    """Adds `camelid router`."""
    parser = command(
        commands,
        "router",
        _router,
        "Send requests to several servers: to one that is well, and again if that one fails before it answers.",
        "camelid router http://10.0.0.1:8000 http://10.0.0.2:8000 --port=9000",
    )
    parser.add_argument("urls", nargs="+", metavar="URL", help="address of a server, as in http://10.0.0.1:8000")
    add_address(parser, port=9000)
    parser.add_argument(
        "--api_key",
        metavar="KEY",
        help="the servers' key, with which the router asks for their models; clients send their own (default: none)",
    )
    add_drain(parser)


def add_drain(parser: argparse.ArgumentParser) -> None:
    """Adds the option for how long answers may take after a signal."""
    parser.add_argument(
        "--drain_seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds in which answers may end after SIGTERM or Ctrl-C; a second signal ends at once (default: 30)",
    )


def add_address(parser: argparse.ArgumentParser, port: int) -> None:
    """Adds the options for where to listen."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines too (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=port, metavar="N", help=f"port to listen on (default: {port})")


def _router(args: argparse.Namespace) -> None:
    urls = [_server_url(url) for url in args.urls]
    if double := [url for url in urls if urls.count(url) > 1]:
        raise UserError(f"{double[0]} is given more than once: give each server once")
    _check_shared(args)
    with _installed("router"):
        from ...serve.backends import Backend
        from ...serve.listen import Listener, bind, listen, say_ready
        from ...serve.router import Router, make_router
    bound = bind(args.host, args.port)
    listen(bound)
    router = Router([Backend(url, url) for url in urls], key=args.api_key)
    say_ready(bound)
    Listener(make_router(router), router, args.drain_seconds).run(sockets=[bound])


def _server_url(given: str) -> str:
    """The address of a server, without the /v1 that clients give. Raises UserError if it is none."""
    try:
        parts = urllib.parse.urlsplit(given)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its pair
        whole = False
    if not whole or parts.query or parts.fragment:
        raise UserError(f"{given} is no address of a server: give one as in http://10.0.0.1:8000")
    return given.rstrip("/").removesuffix("/v1").rstrip("/")


@contextlib.contextmanager
def _installed(name: str) -> Iterator[None]:
    """Turns the import of a package that is not installed into a UserError. name: the command that needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs {error.name}: pip install 'camelid[serve]'") from None


def _check_shared(args: argparse.Namespace) -> None:
    """Raises UserError for a wrong value of an option that `serve` and `router` have in common."""
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port {args.port}: give 0 to 65535, where 0 is any port that is free")
    if args.api_key is not None and not re.fullmatch("[!-~]+", args.api_key):
        raise UserError("--api_key must have ASCII letters, digits and signs alone, without spaces: give another key")
    if not 0 <= args.drain_seconds < math.inf:
        raise UserError(f"--drain_seconds {args.drain_seconds}: give a number of seconds, 0 or more")


def _report(program) -> None:
    print(
        f"compiled {program.name} in {program.seconds:.1f} s, {program.bytes / 1e6:,.1f} MB of temporaries",
        file=sys.stderr,
        flush=True,
    )
