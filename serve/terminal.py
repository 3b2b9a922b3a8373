"""A chat in the terminal."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import TooLong, UserError
from .answers import CONTROLS, MarkdownAnswer, PlainAnswer
from .chat_commands import run_command
from .speakers import Speaker, Unreachable, WrongSetting

HELP = "Type a message. /help lists the commands, /new starts a new conversation, /quit or Ctrl-D ends the chat."

Message = dict[str, str]


def chat(
    speaker: Speaker,
    *,
    system: str | None = None,
    seed: int = 0,
    ask: Callable[[str], str] = input,
    greets: bool = True,
    keys: str = "",
    console: Console,
    notices: Console | None = None,
    **settings: Any,
) -> None:
    """Reads messages and streams the answers until the input ends or the user types `/quit`.

    A line that begins with a slash is a command (`chat_commands`). Ctrl-C stops an answer and keeps its beginning; at
    the prompt it raises KeyboardInterrupt. A message that cannot be answered, such as one that is too long, is reported
    in one line and left out of the conversation.

    Args:
      speaker: answers the conversation.
      system: system message before the conversation; None for none.
      seed: seed of the first answer; each further answer has the next number.
      ask: shows a prompt and returns the user's message.
      greets: whether the first line says what may be typed.
      keys: the keys of `ask`, for `/help`.
      console: prints the answers; on a terminal as Markdown, and their number of tokens per second.
      notices: prints all but the answers: what commands say, and what is wrong; None for `console`.
      **settings: fields of `model.sampling.Sampling`, and `stop`.
    """
    notices = notices or console
    talk = Chat(speaker, console, notices, system, seed, keys, settings)
    if greets:
        talk.tell(HELP)
    while True:
        try:
            text = ask("> ")
        except UnicodeDecodeError:
            text = "\udc80"
        except (EOFError, OSError):  # the end of the input, or a closed terminal
            return
        except KeyboardInterrupt:
            notices.print()
            raise
        try:
            talk.take(text)
        except EOFError:
            return
        except UserError as error:
            talk.warn(str(error))


class Chat:
    """A conversation with a speaker, as it stands.

    Attributes:
      system: the system message, or None.
      turns: the messages of user and assistant.
      settings: the settings of answers, without the seed.
      seed: seed of the next answer.
      keys: the keys of the prompt, for `/help`.
      files: files that this chat has written, which it may write again.
    """

    def __init__(
        self,
        speaker: Speaker,
        console: Console,
        notices: Console,
        system: str | None,
        seed: int,
        keys: str,
        settings: dict[str, Any],
    ):
        self.system, self.seed, self.keys, self.settings = system or None, seed, keys, settings
        self.turns: list[Message] = []
        self.files: set[Path] = set()
        self._speaker, self._console, self._notices = speaker, console, notices

    def tell(self, text: str) -> None:
        """Prints a line that is no part of the conversation."""
        if text:
            self._print(text, "dim")

    def warn(self, text: str) -> None:
        """Prints what is wrong."""
        self._print(text, "red")

    def _print(self, text: str, style: str) -> None:
        terminal = self._notices.is_terminal
        text = text.translate(CONTROLS) if terminal else text
        self._notices.print(text, style=style, markup=False, highlight=False, soft_wrap=not terminal)

    def take(self, text: str) -> None:
        """Answers a message, or runs a command. Raises UserError for a mistake, and EOFError for the end."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("the message is not in UTF-8: type it again")
        if text.startswith("/"):
            run_command(self, text.strip())
        elif text.strip():
            if self.turns and self.turns[-1]["role"] == "user":
                raise UserError("the last message has no answer yet: /regen answers it, /undo takes it back")
            self.answer([*self.turns, {"role": "user", "content": text.strip()}])

    def answer(self, asked: Sequence[Message]) -> None:
        """Streams an answer to turns that end with the user's, and makes both the conversation.

        The conversation stays as it is if nothing was answered: after an error, or Ctrl-C before the first word.
        """
        start = [{"role": "system", "content": self.system}] if self.system else []
        try:
            answer = self._stream([*start, *asked])
        except Unreachable:
            raise
        except UserError as error:
            raise UserError(f"{error}{_remedy(error, len(asked))}") from None
        self.seed = (self.seed + 1) % 2**32
        if answer is not None:
            self.turns = [*asked, {"role": "assistant", "content": answer}]

    def _stream(self, messages: Sequence[Message]) -> str | None:
        """Shows an answer while it comes, and returns it.

        After Ctrl-C, or if a server is lost, it is the beginning of the answer; None if nothing was answered.
        """
        said, interrupted, rate = [], False, Rate(self._speaker)
        how = MarkdownAnswer if self._console.is_terminal and not self._console.is_dumb_terminal else PlainAnswer
        try:
            with (
                how(self._console, lambda: self._speaker.waiting) as shown,
                closing(self._speaker.stream(messages, seed=self.seed, **self.settings)) as pieces,
            ):
                for piece in pieces:
                    said.append(piece)
                    rate.count()
                    shown.push(piece)
        except KeyboardInterrupt:
            interrupted = True
        except Unreachable as error:
            if not "".join(said).strip():
                raise
            interrupted = True
            self.warn(f"{error}; this is the beginning of the answer, /regen asks again")
        if how is MarkdownAnswer:
            self.tell(f"{rate}{', stopped' if interrupted else ''}")
        answer = "".join(said).strip()
        return None if interrupted and not answer else answer


def _remedy(error: UserError, messages: int) -> str:
    """The commands that mend a refusal of a conversation of so many messages, as the end of its line."""
    is_full = isinstance(error, TooLong) or (isinstance(error, WrongSetting) and error.is_full)
    remedies = [f"/set {error.setting}=VALUE changes it"] if isinstance(error, WrongSetting) else []
    remedies += ["/new starts a new conversation"] if is_full and messages > 1 else []
    return f" ({', '.join(remedies)})" if remedies else ""


class Rate:
    """The number of tokens in an answer, and how many came in a second.

    The time runs from the second piece, because the first two may wait for programs to be compiled: that of the prompt,
    and that of a token.
    """

    def __init__(self, speaker: Speaker):
        self._speaker, self._pieces = speaker, 0

    def count(self) -> None:
        """Notes that a piece has come."""
        self._pieces, self._now = self._pieces + 1, time.monotonic()
        if self._pieces == 2:
            self._from, self._tokens = self._now, self._speaker.tokens

    def __str__(self) -> str:
        tokens = self._speaker.tokens
        said = f"{tokens} token{'' if tokens == 1 else 's'}"
        if self._pieces < 3 or tokens <= self._tokens or self._now <= self._from:
            return said
        return f"{said}, {(tokens - self._tokens) / (self._now - self._from):.1f} tokens/s"
