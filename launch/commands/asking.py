"""The options by which a command asks a model many things: an endpoint or a model in memory, with a journal.

    add_asking(parser)                      # --model, --settings, --seed, --journal, --concurrency, ...
    ...
    check_asking(args, [args.questions])    # before anything is read
    with asking(args, args.teacher) as asker:
        replies = asker.ask(requests)

The parser of such a command has an option `--output` too, a file or a folder.
"""

import argparse
import contextlib
import json
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .arguments import MODEL_OPTIONS, check_least, load_model, refuse_unread

if TYPE_CHECKING:
    from ...curate.applying import RejectedRow
    from ...serve.journal import Asker, Journal, Reply, Request

ENDPOINT = ("model", "concurrency", "requests_per_minute", "tokens_per_minute", "retries", "timeout_seconds")
ENDPOINT += ("prompt_price", "completion_price")
"""The options that only endpoints read."""

_NAMED_URL = re.compile(r"(?:((?!https?://)[^=]+)=)?(https?://.*)", re.IGNORECASE | re.DOTALL)
"""The name of a model, if there is one, and the address of its endpoint."""

SECONDS = 10
"""Seconds between two lines about how far the asking is."""

ANOTHER_OUTPUT = "give another --output, or delete it; --journal=FILE uses the replies of a journal again"
"""What to do where an output is in the way."""


def add_teacher(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--teacher`, the model that a command asks, and the options for how it is asked."""
    parser.add_argument(
        "--teacher",
        required=required,
        metavar="URL|PATH",
        help="the model that is asked: the address of an endpoint of OpenAI's protocol, as in http://localhost:8000, "
        "or the path of a language model",
    )
    add_asking(parser)


def add_asking(parser: argparse.ArgumentParser) -> None:
    """Adds the options for how a model is asked."""
    parser.add_argument(
        "--model", metavar="NAME", help="with an endpoint: the model to ask (default: the first it lists)"
    )
    parser.add_argument(
        "--settings",
        type=_object,
        default={},
        metavar="JSON",
        help="further settings of each request, such as '{\"top_p\": 0.9}', but no messages, model, n or stream; null "
        "takes one out (default: none)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the sampling (default: 0, or none to an endpoint)"
    )
    parser.add_argument(
        "--journal",
        metavar="FILE",
        help="file that keeps each request and reply, so that the same command resumes (default: OUTPUT.journal)",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=16,
        metavar="N",
        help="with a model in memory: number of answers that are written together (default: 16)",
    )
    group = parser.add_argument_group("with an endpoint")
    for name, (kind, default, what) in {
        "concurrency": (int, 8, "most requests at a time (default: 8)"),
        "requests_per_minute": (int, None, "most requests that begin within 60 seconds (default: no limit)"),
        "tokens_per_minute": (int, None, "most tokens of requests that begin within 60 seconds (default: no limit)"),
        "retries": (int, 8, "most attempts after a temporary failure (default: 8)"),
        "timeout_seconds": (float, 600.0, "seconds that a reply may take (default: 600)"),
        "prompt_price": (float, None, "price of a million tokens of prompts, for the cost at the end (default: none)"),
        "completion_price": (float, None, "price of a million tokens of answers (default: none)"),
    }.items():
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=what)


def check_asking(args: argparse.Namespace, inputs: Sequence[str] = (), *, folder: bool = False) -> None:
    """Checks the options of `add_asking` and `--output`, before anything is read, and makes a path of `--output`.

    Args:
      args: the parsed options.
      inputs: paths of the files that the command reads, which neither output nor journal may replace.
      folder: whether the output is a folder, not a file.

    Raises:
      UserError: an option is out of range, or a file is in the way.
      PermissionError: the output or the journal cannot be written.
    """
    from ...serve.journal import check_settings

    args.output = Path(args.output).expanduser()
    _check_files(args, inputs, folder)
    check_settings(args.settings)
    if args.model == "":
        raise UserError("--model is empty: give a name, or leave --model out")
    check_least(args, concurrency=1, requests_per_minute=1, tokens_per_minute=1, retries=0, batch_size=1)
    check_not_negative(args, "timeout_seconds", "prompt_price", "completion_price")
    if args.timeout_seconds == 0:
        raise UserError("--timeout_seconds=0: give a number above 0")
    if args.seed is not None and not 0 <= args.seed < 2**31:
        raise UserError(f"--seed={args.seed}: give 0 to {2**31 - 1}")


def check_not_negative(args: argparse.Namespace, *names: str) -> None:
    """Raises UserError for an option whose number is negative, infinite or none."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"--{name}={value}: give a number of 0 or more")


@contextlib.contextmanager
def asking(args: argparse.Namespace, path: str) -> Iterator["Asker"]:
    """The model at an address or a path, with its journal open. At the end the cost of an endpoint is printed.

    Raises:
      UserError: the address or the path leads to no model, an option does not fit it, or the journal is damaged, in
        use, or lacks replies for an output that exists.
    """
    with asking_several(args, [path]) as (asker,):
        yield asker


@contextlib.contextmanager
def asking_several(args: argparse.Namespace, paths: Sequence[str]) -> Iterator[list["Asker"]]:
    """The models at several addresses or paths, as `asking` gives one. All share a journal.

    An address may have the name of the model to ask before it, as in large=https://api.example.com/v1; else `--model`
    names it. Prices and limits hold for each endpoint, and the options of models in memory for each of them.
    """
    if not any(map(is_url, paths)):
        refuse_unread(args, ENDPOINT, "an endpoint")
    if all(map(is_url, paths)):
        for name in (*MODEL_OPTIONS, "batch_size"):
            if getattr(args, name, None) != args.parser.get_default(name):
                raise UserError(f"--{name}={getattr(args, name)} does nothing with an endpoint: leave it out")
    with open_journal(args) as journal:
        askers = [(_endpoint if is_url(path) else _local)(args, path, journal) for path in paths]
        with _cost_told(args, any(map(is_url, paths)), journal):
            yield askers


def is_url(path: str) -> bool:
    """Whether a path is the address of an endpoint, with or without the name of a model before it."""
    return _NAMED_URL.match(path) is not None


def open_journal(args: argparse.Namespace) -> "Journal":
    """The journal of a command, to be entered. If the output exists, the command may only repeat it: a request without
    a reply in the journal is then an error."""
    from ...serve.journal import Journal

    lacks = f"{args.output} exists, and {journal_path(args)} lacks replies for another: {ANOTHER_OUTPUT}"
    return Journal(journal_path(args), sealed=lacks if _is_there(args.output) else None)


def journal_path(args: argparse.Namespace) -> Path:
    """The file of the journal: that of `--journal`, or the output's with ".journal" at the end."""
    return Path(args.journal or f"{args.output}.journal").expanduser()


def _is_there(output: Path) -> bool:
    """Whether there is an output. An empty folder is none."""
    return any(output.iterdir()) if output.is_dir() else output.exists()


def _endpoint(args: argparse.Namespace, address: str, journal: "Journal") -> "Asker":
    """The endpoint at an address, as the options say."""
    try:
        from ...serve.endpoint import Endpoint, Limits, key_for
    except ModuleNotFoundError as error:
        raise UserError(f"an endpoint needs {error.name}: pip install 'camelid[serve]'") from None

    name, address = _NAMED_URL.fullmatch(address).groups()
    limits = Limits(
        args.concurrency, args.requests_per_minute, args.tokens_per_minute, args.retries, args.timeout_seconds
    )
    name = args.model if name is None else name
    progress = _Progress()
    key = key_for(address)
    return _Told(Endpoint(address, name, journal=journal, key=key, limits=limits, report=progress.report), progress)


def _local(args: argparse.Namespace, path: str, journal: "Journal") -> "Asker":
    """The language model at a path, as the options say."""
    from ...checkpoints import open as open_checkpoint
    from ...serve.local import Local

    how = {name: value for name in MODEL_OPTIONS if (value := getattr(args, name, None)) is not None}
    found = open_checkpoint(path, how.get("weights"), base=how.get("base"))
    if hasattr(args, "path"):
        model = load_model(args)
    else:
        from ...checkpoints.language_model import load
        from .arguments import keep_programs

        keep_programs()
        model = load(path)
    identity = [*found.identity[1:], how]
    name = Path(path).absolute().name
    progress = _Progress()
    how = {"journal": journal, "batch_size": args.batch_size, "report": progress.report}
    return _Told(Local(model, name, identity, **how), progress)


class _Progress:
    """Tells on standard error, every SECONDS, how many replies of a model there are, also while none has come."""

    def __init__(self):
        self._done, self._all, self._last = 0, 0, None

    def report(self, done: int, all: int) -> None:
        """Takes the number of replies so far and of requests."""
        self._done, self._all = done, all

    @contextlib.contextmanager
    def told(self, name: str, count: int) -> Iterator[None]:
        """Tells while a block asks the model `name` for `count` replies."""
        begin, ended = time.monotonic(), threading.Event()
        self._done, self._all, self._last = 0, count, begin if self._last is None else self._last

        def tell() -> None:
            while not ended.wait(max(0.0, self._last + SECONDS - time.monotonic())):
                self._last = time.monotonic()
                said = f"{self._done:,} of {self._all:,} replies of {name} after {self._last - begin:,.0f} s"
                print(f"camelid: {said}", file=sys.stderr, flush=True)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Told:
    """An `Asker` that tells its progress."""

    def __init__(self, asker: "Asker", progress: _Progress):
        self.name, self.key, self._asker, self._progress = asker.name, asker.key, asker, progress

    def ask(self, requests: Sequence["Request"]) -> list["Reply"]:
        """The replies to requests, as the asker gives them."""
        with self._progress.told(self.name, len(requests)):
            return self._asker.ask(requests)


def tell_shortfall(kept: int, wanted: int, what: str, rejected: Iterable["RejectedRow"], advice: str) -> None:
    """Says on standard error that fewer rows were kept than wanted, which reason took most, and what helps.

    Args:
      kept: number of rows that were kept.
      wanted: number of rows that were asked for.
      what: what the rows are, such as "questions".
      rejected: the rows that were rejected.
      advice: what to do.
    """
    if kept >= wanted:
        return
    reasons = Counter(f"{each.step}: {each.reason}" for each in rejected)
    most = "".join(f"; {why} took most ({count:,} of {reasons.total():,})" for why, count in reasons.most_common(1))
    print(f"camelid: {kept:,} of {wanted:,} {what} were kept{most}: {advice}", file=sys.stderr)


@contextlib.contextmanager
def _cost_told(args: argparse.Namespace, has_endpoint: bool, journal: "Journal") -> Iterator[None]:
    """Prints on standard error what the requests to an endpoint took, also where they end early."""
    try:
        yield
    finally:
        if has_endpoint and journal.ledger != type(journal.ledger)():
            ledger, prices = journal.ledger, (args.prompt_price, args.completion_price)
            cost = ledger.cost(*(price or 0.0 for price in prices))
            print(f"camelid: {ledger}{f'; the replies cost {cost:,.4f}' if any(prices) else ''}", file=sys.stderr)


def _check_files(args: argparse.Namespace, inputs: Sequence[str], folder: bool) -> None:
    """Raises UserError if the output or the journal would take the place of another file."""
    from ..outputs import check_new_file, check_writable

    journal, read = journal_path(args), {os.path.realpath(path) for path in inputs}
    for flag, path in {"--output": args.output, "--journal": journal}.items():
        (check_writable if folder and flag == "--output" else check_new_file)(path, flag)
        if os.path.realpath(path) in read:
            raise UserError(f"{flag}={path} is one of the files that are read: give another name")
    if os.path.realpath(journal) == os.path.realpath(args.output):
        raise UserError(f"--journal={journal} is the output too: give another name")
    if _is_there(args.output) and not journal.exists():
        raise UserError(f"{args.output} exists, and it has no journal {journal}: {ANOTHER_OUTPUT}")


def _object(text: str) -> dict[str, Any]:
    """An object in JSON on the command line."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object, as in '{{\"top_p\": 0.9}}'")
    return found
