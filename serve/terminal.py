"""A chat with a model in the terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from ..checkpoints.language_model import LanguageModel
from ..errors import UserError

HELP = "Type a message. /new starts a new conversation, /quit or Ctrl-D ends the chat."


def chat(
    model: LanguageModel,
    *,
    system: str | None = None,
    seed: int = 0,
    ask: Callable[[str], str] = input,
    console: Console,
    **sampling: Any,
) -> None:
    """Reads messages and streams the answers until the input ends or the user types `/quit`.

    Ctrl-C stops an answer and keeps its beginning; at the prompt it raises KeyboardInterrupt. A message that the model
    cannot answer, such as one that is too long, is reported in one line and left out of the conversation.

    Args:
      model: the model.
      system: system message before the conversation; None for none.
      seed: seed of the first answer; each further answer has the next number.
      ask: shows a prompt and returns the user's message.
      console: prints the answers.
      **sampling: fields of `model.sampling.Sampling`, and `stop`.
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
        except (EOFError, OSError):  # the end of the input, or a closed terminal
            return
        except KeyboardInterrupt:
            console.print()
            raise
        if text == "/quit":
            return
        if text == "/new":
            messages = list(start)
        elif any("\ud800" <= character <= "\udfff" for character in text):
            console.print("the message is not in UTF-8: type it again", style="red", highlight=False)
        elif text:
            asked = [*messages, {"role": "user", "content": text}]
            try:
                answer = _stream(model, asked, console, seed=(seed + turn) % 2**32, **sampling)
            except UserError as error:  # for example too long for the context; the conversation stays unchanged
                console.print(f"{error} (/new starts a new conversation)", style="red", markup=False, highlight=False)
                continue
            turn += 1
            if answer is not None:
                messages = [*asked, {"role": "assistant", "content": answer}]


def _stream(model: LanguageModel, messages: list[dict[str, str]], console: Console, **sampling: Any) -> str | None:
    """Prints an answer while it is generated, and returns it; after Ctrl-C its beginning, or None if it is empty.

    Args:
      model: the model.
      messages: the conversation.
      console: prints the answer.
      **sampling: arguments of `LanguageModel.stream_chat`.
    """
    said, interrupted = [], False
    try:
        for piece in model.stream_chat(messages, **sampling):
            said.append(piece)
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        interrupted = True
    console.print()
    answer = "".join(said).strip()
    return None if interrupted and not answer else answer
