"""Talking to a model in the terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from ..checkpoints.language_model import LanguageModel
from ..errors import UserError

HELP = "Type a message; /new forgets the conversation, /quit (or Ctrl-D) leaves."


def chat(
    llama: LanguageModel,
    *,
    system: str | None = None,
    seed: int = 0,
    ask: Callable[[str], str] = input,
    console: Console,
    **sampling: Any,
) -> None:
    """Reads messages with `ask` and streams the answers until the input ends or `/quit`.

    An empty message is passed over. Ctrl-C ends an answer and keeps what has been said of it; at the prompt it ends the
    chat, as KeyboardInterrupt. What the model cannot be asked is told in one line and forgotten. seed: of the first
    answer; each further one has the next.
    """
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    console.print(HELP, style="dim", highlight=False)
    turn = 0
    while True:
        try:
            text = ask("> ").strip()
        except UnicodeDecodeError:
            text = "\udc80"
        except (EOFError, OSError):  # its end, or a terminal that is gone
            return
        except KeyboardInterrupt:
            console.print()
            raise
        if text == "/quit":
            return
        if text == "/new":
            messages = list(start)
        elif any("\ud800" <= character <= "\udfff" for character in text):
            console.print("that message is not in UTF-8 and was not read", style="red", highlight=False)
        elif text:
            asked = [*messages, {"role": "user", "content": text}]
            try:
                answer = _stream(llama, asked, console, seed=(seed + turn) % 2**32, **sampling)
            except UserError as error:  # too long for the model's context, say: the conversation stays as it was
                console.print(f"{error} (/new begins another conversation)", style="red", markup=False, highlight=False)
                continue
            turn += 1
            if answer is not None:
                messages = [*asked, {"role": "assistant", "content": answer}]


def _stream(llama: LanguageModel, messages: list[dict[str, str]], console: Console, **sampling: Any) -> str | None:
    """The answer, or what there was of it when it was interrupted; None where that was nothing."""
    said, interrupted = [], False
    try:
        for piece in llama.stream_chat(messages, **sampling):
            said.append(piece)
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        interrupted = True
    console.print()
    answer = "".join(said).strip()
    return None if interrupted and not answer else answer
