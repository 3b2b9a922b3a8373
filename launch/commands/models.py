"""The commands `camelid generate` and `camelid chat`, which use a language model."""

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from pathlib import Path

from ...errors import UserError
from ...serve.status import StatusLine, is_terminal
from .arguments import (
    MODEL_OPTIONS,
    add_draft,
    add_model,
    add_sampling,
    check_sampling,
    command,
    given_sampling,
    load_with_draft,
    refuse_unread,
    require_output,
    sampling,
)


def add_generate(commands) -> None:
    """Adds `camelid generate`."""
    parser = command(
        commands,
        "generate",
        _generate,
        "Continue texts, or with --chat answer messages.",
        "camelid generate runs/sft 'Once upon a time' --max_tokens=50\n\n"
        "With several outputs, a line before each one gives the number of its prompt and answer.",
    )
    add_model(parser)
    add_draft(parser)
    parser.add_argument("prompts", nargs="+", metavar="prompt", help="a text to continue, or with --chat a message")
    parser.add_argument("--chat", action="store_true", help="answer each prompt as a user's message")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="number of answers to each prompt (default: 1)")
    add_sampling(parser, max_tokens=128)


def _generate(args: argparse.Namespace) -> int:
    require_output()
    check_sampling(args)
    from ...checkpoints.language_model import PromptTooLong

    with StatusLine(f"loading {args.path}"):
        model = load_with_draft(args)
    answer = model.chat_batch if args.chat else model.generate
    with StatusLine("generating"), warnings.catch_warnings(record=True) as told:
        texts = answer(args.prompts, seed=args.seed, n=args.n, **sampling(args, model))
    for place, text in enumerate(texts):
        if len(texts) > 1:  # a header in the form of the command `head`
            prompt, sample = divmod(place, args.n)
            print(f"==> prompt {prompt + 1}{f', answer {sample + 1}' if args.n > 1 else ''} <==")
        print(text)
    for warning in told:
        print(f"camelid: {warning.message}", file=sys.stderr)
    print_draft_counts(model)
    return int(any(issubclass(warning.category, PromptTooLong) for warning in told))


def add_chat(commands) -> None:
    """Adds `camelid chat`."""
    parser = command(
        commands,
        "chat",
        _chat,
        "Talk to a tuned model in the terminal, or to a server of OpenAI's protocol.",
        "camelid chat runs/sft\ncamelid chat http://localhost:8000\n\n"
        "Type /help in the chat for its commands. A server decides on settings that are not given here; its key is\n"
        "read from the environment variable CAMELID_API_KEY.",
    )
    add_model(parser, or_else=", or http://HOST:PORT of a server")
    add_draft(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="with a server: the model to talk to (default: the first that it lists)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message before the conversation (default: none)")
    add_sampling(parser, max_tokens=512)


HOST_AND_PORT = re.compile(r"([\w.-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}(/.*)?")
"""An address without http://, which is more likely than a path that looks so."""


def _chat(args: argparse.Namespace) -> None:
    require_output()
    check_sampling(args)
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("chat reads messages from standard input, which is closed")
    is_server = args.path.lower().startswith(("http://", "https://"))
    if HOST_AND_PORT.fullmatch(args.path) and not Path(args.path).exists():
        raise UserError(f"{args.path}: no such checkpoint; to talk to a server write http://{args.path}")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that `chat` can report a message that is not UTF-8
    with _typing():
        speaker, settings = (_server if is_server else _loaded)(args)
        _talk(speaker, args.system, args.seed, settings)
        if not is_server:
            print_draft_counts(speaker.model)


def _typing() -> contextlib.AbstractContextManager:
    """Hides what is typed while nobody reads it, where answers are drawn on a terminal."""
    if not is_terminal(sys.stdout):
        return contextlib.nullcontext()
    from ...serve.keyboard import hidden_typing

    return hidden_typing(sys.stdout)


def _server(args: argparse.Namespace):
    """The speaker and the settings for a chat with the server at `args.path`."""
    from ...serve.speakers import KEY, ServerSpeaker

    for name in MODEL_OPTIONS:
        if (value := getattr(args, name)) is not None:
            raise UserError(f"--{name}={value} does nothing with a server, which loads its own model: leave it out")
    settings = given_sampling(args) | ({"stop": args.stop} if args.stop else {})
    with StatusLine(f"waiting for {args.path}"):
        return ServerSpeaker(args.path, args.model, os.environ.get(KEY)), settings


def _loaded(args: argparse.Namespace):
    """The speaker and the settings for a chat with the model at `args.path`."""
    from ...serve.speakers import ModelSpeaker

    refuse_unread(args, ["model"], "the address of a server")
    with StatusLine(f"loading {args.path}"):
        model = load_with_draft(args)
    if model.template is None:
        raise UserError(
            f"{args.path} is a model without a chat template: give --template=NAME, or use `camelid generate`"
        )
    return ModelSpeaker(model), sampling(args, model)


def _talk(speaker, system: str | None, seed: int, settings: dict) -> None:
    """Runs a chat: with editing and a history on a terminal, by plain lines elsewhere.

    Unless standard output is a terminal it gets the answers alone; without a terminal to type on there is no prompt.
    """
    from rich.console import Console

    from ...serve.terminal import chat

    console = Console(force_terminal=sys.stdout.isatty())  # rich takes a file for a terminal if FORCE_COLOR is set
    notices = console if console.is_terminal else Console(stderr=True)

    def ask_by_line(prompt: str) -> str:
        notices.print(prompt, end="")
        return input()

    how = {"system": system, "seed": seed, "console": console, "notices": notices, **settings}
    if not sys.stdin.isatty():
        chat(speaker, ask=lambda _: input(), greets=False, **how)
    elif is_terminal(sys.stdin) and is_terminal(sys.stdout):
        from ...serve.chat_commands import COMMANDS
        from ...serve.prompt import KEYS, make_prompt

        ask = make_prompt(Path("~/.cache/camelid/chat_history").expanduser(), list(COMMANDS))
        chat(speaker, ask=ask, keys=KEYS, **how)
    else:
        chat(speaker, ask=ask_by_line, **how)


def print_draft_counts(model) -> None:
    """Prints the accepted tokens of a draft model on standard error; standard output is left to the answers."""
    if model.draft is not None:
        print(model.draft, file=sys.stderr)
