"""Talking to a model in the terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from ..data.errors import UserError
from ..train.bundle import Llama

HELP = "Type a message; /new forgets the conversation, /quit (or Ctrl-D) leaves."


def chat(
    llama: Llama, *, system: str | None = None, ask: Callable[[str], str] = input, console: Console, **sampling: Any
) -> None:
    """Reads messages with `ask` and streams the answers until the input ends or `/quit`.

    An empty message is passed over. Interrupting an answer (Ctrl-C) keeps what has been said of it.
    """
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    console.print(HELP, style="dim", highlight=False)
    turn = 0
    while True:
        try:
            text = ask("> ").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text == "/new":
            messages = list(start)
        elif text:
            asked = [*messages, {"role": "user", "content": text}]
            try:
                answer = _stream(llama, asked, console, seed=turn, **sampling)
            except UserError as error:  # too long for the model's context, say: the conversation stays as it was
                console.print(str(error), style="red", highlight=False)
                continue
            messages = [*asked, {"role": "assistant", "content": answer}]
            turn += 1


def _stream(llama: Llama, messages: list[dict[str, str]], console: Console, **sampling: Any) -> str:
    said = []
    try:
        for piece in llama.stream_chat(messages, **sampling):
            said.append(piece)
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        pass
    console.print()
    return "".join(said).strip()
