"""The commands of the chat: lines that begin with a slash."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError, did_you_mean, shown
from ..model.sampling import Sampling
from . import conversation_files

if TYPE_CHECKING:
    from .terminal import Chat

SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The fields of `Sampling` that `/set` changes. The other settings are `stop`, a string before which answers end, and
`seed`."""
NAMES = (*SETTINGS, "stop", "seed")


class Command(NamedTuple):
    """A command of the chat."""

    run: Callable[["Chat", str], None]
    """Runs the command for a chat with the text after its name. Raises UserError for a text that does not fit."""
    usage: str
    """What is typed after the name."""
    effect: str
    """What the command does, for `/help`."""


def run_command(chat: "Chat", line: str) -> None:
    """Runs a line that begins with a slash.

    Raises:
      UserError: there is no such command, or what follows it does not fit.
      EOFError: the command ends the chat.
    """
    name, rest = [*line.split(maxsplit=1), ""][:2]
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS) or "; /help lists them"
        raise UserError(f"there is no command {name}{near} (a message may begin with a slash after a space)")
    if rest and not COMMANDS[name].usage:
        raise UserError(f"{name} stands alone: leave {shown(rest)} out")
    COMMANDS[name].run(chat, rest)


def _system(chat: "Chat", text: str) -> None:
    chat.system = text or None
    chat.tell(f"system message: {text}" if text else "no system message")


def _set(chat: "Chat", text: str) -> None:
    settings, seed = changed(chat.settings, _words(text))
    chat.settings = settings
    if seed is not None:
        chat.seed = seed
    all_set = {name: settings[name] for name in SETTINGS if settings.get(name) is not None} | {"seed": chat.seed}
    told = [f"{name}={value}" for name, value in all_set.items()]
    if stop := settings.get("stop"):
        told.append("stop=" + ", ".join(map(repr, (stop,) if isinstance(stop, str) else stop)))
    chat.tell(" ".join(told))


def changed(settings: Mapping[str, Any], words: list[str]) -> tuple[dict[str, Any], int | None]:
    """Settings after assignments such as temperature=0.7, and the seed if one of them is of the seed.

    Raises UserError for a setting that is unknown or out of range.
    """
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in NAMES:
            raise UserError(f"there is no setting {name!r}: set one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
        if not equals:
            raise UserError(f"{name} has no value: write {name}=VALUE, without spaces")
        given[name] = value if name == "stop" else _number(name, value)
    seed, stop = given.pop("seed", None), given.pop("stop", None)
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise UserError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}")
    try:
        Sampling(**given)
    except ValueError as error:
        raise UserError(str(error).removeprefix("sampling ")) from None
    return {**settings, **given} | ({} if stop is None else {"stop": (stop,) if stop else ()}), seed


def _number(name: str, text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UserError(f"{name}={text}: give a number")


def _regen(chat: "Chat", _: str) -> None:
    asked = _up_to_the_last_message(chat)
    chat.answer(chat.turns[: asked + 1])


def _undo(chat: "Chat", _: str) -> None:
    asked = _up_to_the_last_message(chat)
    text = " ".join(chat.turns[asked]["content"].split())
    chat.turns = chat.turns[:asked]
    chat.tell(f"taken back: {text if len(text) <= 60 else f'{text[:60]}...'}")


def _up_to_the_last_message(chat: "Chat") -> int:
    """The place of the user's last message in the conversation. Raises UserError if there is none."""
    asked = [i for i, turn in enumerate(chat.turns) if turn["role"] == "user"]
    if not asked:
        raise UserError("the conversation is empty: type a message")
    return asked[-1]


def _save(chat: "Chat", text: str) -> None:
    match _words(text):
        case [name] | [name, _] as words:
            path = Path(name).expanduser()
            form = conversation_files.form_of(path, *words[1:])
        case _:
            raise UserError("give one file, and sharegpt or alpaca if you like, as in /save talk.json alpaca")
    if path.suffix == ".json" and path.resolve() not in chat.files and path.exists():
        raise UserError(f"{path} is there already: give another name, or one that ends with .jsonl to add a line")
    conversation_files.save(path, form, chat.system, chat.turns)
    chat.files.add(path.resolve())
    chat.tell(f"saved as {form} in {path}")


def _load(chat: "Chat", text: str) -> None:
    match _words(text):
        case [name]:
            number = 1
        case [name, digits] if digits.isdecimal() and int(digits) >= 1:
            number = int(digits)
        case _:
            raise UserError("give one file, and the number of a record if it is not the first: /load talks.jsonl 2")
    chat.system, chat.turns = conversation_files.load(Path(name).expanduser(), number)
    chat.tell(f"{len(chat.turns)} messages; system message: {chat.system or 'none'}")
    for turn in chat.turns[-2:]:
        chat.tell(f"{turn['role']}: {turn['content']}")


def _words(text: str) -> list[str]:
    """The words of a text as a shell splits them, so that the name of a file may have spaces within quotes."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text}: {str(error).lower()}") from None


def _new(chat: "Chat", _: str) -> None:
    chat.turns = []


def _help(chat: "Chat", _: str) -> None:
    typed = {name: f"{name} {command.usage}".strip() for name, command in COMMANDS.items()}
    width = max(map(len, typed.values()))
    for name, command in COMMANDS.items():
        chat.tell(f"{typed[name]:{width}}  {command.effect}")
    chat.tell(f"Settings are {', '.join(NAMES)}; stop= alone clears it.")
    chat.tell(chat.keys)


def _quit(chat: "Chat", _: str) -> None:
    raise EOFError


COMMANDS = {
    "/system": Command(_system, "[TEXT]", "changes the system message; without TEXT there is none"),
    "/set": Command(_set, "[NAME=VALUE ...]", "changes settings of the answers, and shows them"),
    "/regen": Command(_regen, "", "answers the last message anew, with the next seed"),
    "/undo": Command(_undo, "", "takes the last message and its answer back"),
    "/save": Command(_save, "FILE [FORM]", "writes .json, or adds to .jsonl, as sharegpt or alpaca"),
    "/load": Command(_load, "FILE [N]", "goes on from record N of a file, in any format of data"),
    "/new": Command(_new, "", "begins a new conversation, with the system message"),
    "/help": Command(_help, "", "shows this"),
    "/quit": Command(_quit, "", "ends the chat"),
}
