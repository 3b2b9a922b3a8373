"""Seed tasks: the examples that a teacher is shown before it writes new ones.

A file has one of these forms, in English or Chinese:

    {"instruction", "instances": [{"input", "output"}]}    self-instruct's seed tasks; the first instance counts
    {"instruction", "input", "output"}                     Alpaca records; "input" and "output" may be missing
    any other record that data/formats.py reads            its first question and the answer to it
    one instruction a line                                 a .txt file
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...data.files import file_rows, find_files
from ...data.formats import parse, unfold
from ...data.json_values import lone_surrogate
from ...errors import UserError
from ..words import HAN

LANGUAGES = ("en", "zh")
"""Languages in which tasks can be asked for."""

_HAN, _LATIN, _EITHER = re.compile(f"[{HAN}]"), re.compile("[A-Za-z]+"), re.compile(f"[A-Za-z{HAN}]")


@dataclass(frozen=True)
class Task:
    """An instruction with its input and the answer."""

    instruction: str
    """What is asked."""

    input: str = ""
    """What the instruction is applied to; "" where it needs nothing."""

    output: str = ""
    """The answer; "" where it is not known."""


def language_of(text: str) -> str | None:
    """ "en" or "zh", whichever most of a text is; None for a text without Latin and Chinese letters.

    A Chinese character counts as much as a Latin word. Where neither is more than twice the other, the first letter
    decides: "翻译成英文：How are you?" is Chinese, "What does 你好 mean?" is English.
    """
    han, latin = len(_HAN.findall(text)), len(_LATIN.findall(text))
    if not han and not latin:
        return None
    if han > 2 * latin or latin > 2 * han:
        return "zh" if han > latin else "en"
    return "zh" if _HAN.match(_EITHER.search(text)[0]) else "en"


def read_seeds(pattern: str | os.PathLike) -> list[Task]:
    """The tasks in the files that a path, a glob or a folder names, in the order of the files.

    Raises:
      UserError: there is no such file, a record is no task, or there is none at all.
    """
    found = []
    for file in find_files(os.fspath(pattern)):
        name = str(file)
        if name.removesuffix(".gz").endswith((".txt", ".md")):
            found += [Task(line.strip()) for line in _lines(file) if line.strip()]
        else:
            for where, raw in file_rows([file]):
                try:
                    found.append(_task(raw))
                except ValueError as error:
                    raise UserError(f"{where}: no seed task ({error}): mend the record or take it out") from None
    if not found:
        raise UserError(f"{pattern} has no seed tasks: give a file with at least one instruction")
    return found


def _task(raw: Any) -> Task:
    """The task in a raw record. Raises ValueError if there is none."""
    if isinstance(raw, ValueError):
        raise raw
    raw = unfold(raw)[0] if isinstance(raw, Mapping) and raw.get("instances") else raw
    if isinstance(raw, Mapping) and "instruction" in raw:
        parts = [raw.get(name) or "" for name in ("instruction", "input", "output")]
        if not all(isinstance(part, str) for part in parts) or not parts[0].strip():
            raise ValueError("instruction, input and output have to be texts, and instruction must not be empty")
        if surrogate := lone_surrogate("".join(parts)):
            raise ValueError(f"it has the lone surrogate {surrogate!r}, which UTF-8 cannot write")
        return Task(*(part.strip() for part in parts))
    record = parse(raw)
    turns = [message for message in record.get("messages", ()) if message["role"] in ("user", "assistant")]
    if not turns or turns[0]["role"] != "user":
        raise ValueError("it has no instruction and no question of a user")
    answer = turns[1]["content"] if len(turns) > 1 else ""
    return Task(turns[0]["content"], turns[0].get("input", ""), answer or "")


def _lines(file) -> list[str]:
    """The lines of a text file."""
    if str(file).endswith(".gz"):
        raise UserError(f"{file}: plain instructions are read from files that are not packed: unpack it")
    try:
        return file.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8: convert it, or save it as UTF-8 in an editor") from None
