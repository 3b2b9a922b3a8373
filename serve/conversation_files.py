"""A conversation as a record in a file: ShareGPT's form or Alpaca's, which `data/` reads, and back."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.formats import parse
from ..data.sources import Source, read
from ..errors import UserError, did_you_mean

Message = dict[str, str]


def _sharegpt(system: str | None, turns: Sequence[Message]) -> dict:
    speakers = {"user": "human", "assistant": "gpt"}
    record = {"conversations": [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns]}
    return record | ({"system": system} if system else {})


def _alpaca(system: str | None, turns: Sequence[Message]) -> dict:
    said = [turn["content"] for turn in turns]
    history = [list(pair) for pair in zip(said[:-2:2], said[1:-2:2], strict=True)]
    record = {"instruction": said[-2], "input": "", "output": said[-1]}
    return record | ({"history": history} if history else {}) | ({"system": system} if system else {})


FORMS = {"sharegpt": _sharegpt, "alpaca": _alpaca}
"""{form of a record: function that makes it of a system message and turns}."""


def form_of(path: Path, word: str | None = None) -> str:
    """The form in which a file is written: `word`, or what the ending says, such as .alpaca.json; else ShareGPT's."""
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"{path}: give a name that ends with .json (one conversation) or .jsonl (one a line)")
    if word is None:
        word = path.stem.rpartition(".")[2]
        return word if word in FORMS else "sharegpt"
    if word not in FORMS:
        raise UserError(f"there is no form {word!r}: give {' or '.join(FORMS)}{did_you_mean(word, FORMS)}")
    return word


def save(path: Path, form: str, system: str | None, turns: Sequence[Message]) -> None:
    """Writes a conversation: the whole of a .json file, or a further line of a .jsonl file.

    Args:
      path: the file.
      form: a name in FORMS.
      system: the system message, or None.
      turns: the turns of user and assistant, in turn.

    Raises:
      UserError: the form cannot hold the conversation, or the file cannot be written.
    """
    messages = [{"role": "system", "content": system}] * bool(system) + list(turns)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise UserError("there is nothing to save: the conversation does not end with an answer")
    record = FORMS[form](system, turns)
    try:
        read_back = parse(record)
    except ValueError as error:
        raise UserError(f"{form} cannot hold this conversation: {error}") from None
    if read_back != {"kind": "chat", "messages": messages}:
        others = " or ".join(other for other in FORMS if other != form)
        raise UserError(f"{form} would be read back as another conversation: give {others}, or change the turns")
    text = json.dumps([record] if path.suffix == ".json" else record, ensure_ascii=False) + "\n"
    try:
        if path.suffix == ".json":
            unfinished = path.with_name(f"{path.name}.unfinished")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        else:
            _append(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _append(path: Path, line: str) -> None:
    """Adds a line to a file, whose last line may lack its end."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(line.encode())


def load(path: Path, number: int = 1) -> tuple[str | None, list[Message]]:
    """Reads a conversation from a file in any format of `data/`.

    Args:
      path: the file.
      number: which of its records, from 1.

    Returns:
      The system message, or None, and the turns.

    Raises:
      UserError: there is no such record, or it is no conversation of text by user and assistant.
    """
    record = next(itertools.islice(read(Source(str(path))), number - 1, None), None)
    if record is None:
        raise UserError(f"{path} has no record {number}")
    if record["kind"] not in ("chat", "prompt") or "tools" in record or "documents" in record:
        raise UserError(f"{record.where} is no plain conversation: give a record of user and assistant turns")
    messages = [_plain(message, record.where) for message in record["messages"]]
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _plain(message: Mapping, where: str) -> Message:
    """A message as {"role", "content"}; Alpaca's input follows the instruction after a blank line."""
    unread = message.keys() - {"role", "content", "input", "train"}
    if unread or message["role"] == "tool":
        raise UserError(f"{where} has {', '.join(sorted(unread)) or 'turns of tools'}, which a chat cannot continue")
    more = f"\n\n{message['input']}" if message.get("input") else ""
    return {"role": message["role"], "content": message["content"] + more}
