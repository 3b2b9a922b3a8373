"""Reads messages in the dialects of public data sets as {"role", "content", ...}, and checks them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import shown
from .conversation_fields import read_tool_calls
from .json_values import kind_of, present
from .labels import is_trained_turn

Message = dict[str, Any]


# In ShareGPT's function calling, a call of the model is a turn of its own (function_call), and so is its result.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}


class Dialect(NamedTuple):
    """How a format names the fields and roles of a message. Of two field names, the first is preferred."""

    speaker_fields: tuple[str, str] = ("role", "from")  # names of the field with the role
    content_fields: tuple[str, str] = ("content", "value")  # names of the field with the text
    roles: Mapping[str, str] = _ROLES  # "system", "user", "assistant" or "tool" for each name of a role


OPENAI = Dialect()
COLOSSALCHAT = Dialect(speaker_fields=("from", "role"))
SHAREGPT = Dialect(speaker_fields=("from", "role"), content_fields=("value", "content"))
LMFLOW = Dialect(roles=_ROLES | {"function": "assistant"})  # in LMFlow the model's call, in OpenAI's format its result

REASONING = ("reasoning_content", "thinking", "reasoning")

# For each role, the roles that may come directly before it; None stands for the beginning.
ALTERNATING = {
    "system": {None},
    "user": {None, "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
FREE = {
    "system": {None},
    "user": {None, "system", "assistant", "user", "tool"},
    "assistant": {"user", "tool", "assistant"},
    "tool": {"assistant", "tool"},
}


def string(raw: dict, field: str) -> str:
    """The text in `field`. Raises ValueError if it is missing, blank or not a string."""
    if field not in raw:
        raise ValueError(f"{field} is missing")
    if not isinstance(raw[field], str):
        raise ValueError(f"{field} is {kind_of(raw[field])}, not a string")
    if not raw[field].strip():
        raise ValueError(f"{field} is empty")
    return raw[field]


def optional_string(raw: dict, field: str) -> str:
    """The text in `field`; "" if it is missing or blank. Raises ValueError if it is not a string."""
    blank = field not in raw or (isinstance(raw[field], str) and not raw[field].strip())
    return "" if blank else string(raw, field)


def read_messages(raw: dict, field: str, dialect: Dialect) -> list[Message]:
    """The messages in a field of a raw record. A blank system message is left out.

    Args:
      raw: the raw record.
      field: the name of the field. It holds a list of messages, a single message, or columns such as {"role": [...],
        "content": [...]}, the form in which Parquet and TFDS give sequences of objects.
      dialect: the names of fields and roles in a message.

    Raises:
      ValueError: the field is missing or empty, or a message is malformed; the error names the message.
    """
    if field not in raw:
        raise ValueError(f"{field} is missing")
    rows = _rows(raw[field], field, dialect)
    found = [_message(row, dialect, f"{field}[{i}]") for i, row in enumerate(rows)]
    messages = [message for message in found if message["role"] != "system" or message["content"].strip()]
    if not messages:
        raise ValueError(f"{field} is empty")
    return messages


def _rows(value, field: str, dialect: Dialect) -> list:
    """The raw messages in `value` as a list, in whatever form the field has them.

    Args:
      value: a list of messages, a single message, or a dict of columns (a list of equal length for each field).
      field: name of the field, for error messages.
      dialect: names of a message's fields.

    Raises ValueError for any other value, and for columns of different lengths.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{field} is {kind_of(value)}, not a list of messages")
    if not isinstance(value.get(_field(value, dialect.speaker_fields)), list):
        return [value]
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{field} has columns of different lengths: give each column one value per message")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _field(row: Mapping, names: tuple[str, str]) -> str:
    """The one of two names of a field that `row` has; the first name if it has neither."""
    return names[1] if names[0] not in row and names[1] in row else names[0]


def _message(row, dialect: Dialect, where: str) -> Message:
    """One raw message as {"role", "content", ...}. Raises ValueError, which names it by `where`, if it is malformed."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {kind_of(row)}, not a message")
    row = present(row)
    speaker = row.get(_field(row, dialect.speaker_fields))
    if not isinstance(speaker, str):
        raise ValueError(f"{where} has no {dialect.speaker_fields[0]}")
    role = dialect.roles.get(speaker.lower())
    if role is None:
        raise ValueError(f"{where} has the unknown role {shown(speaker)} (known: {', '.join(sorted(dialect.roles))})")
    calls = read_tool_calls(row, where)
    field = _field(row, dialect.content_fields)
    words = row.get(field, "" if calls or role == "system" else None)
    message = {"role": role, "content": _content(words, f"{where}.{field}")}
    trained = is_trained_turn(row, role, where)
    if role == "assistant":
        thoughts = reasoning_of(row, where)
        more = {"tool_calls": calls, "reasoning_content": thoughts}
        return (
            message
            | {name: value for name, value in more.items() if value}
            | ({"train": False} if trained is False else {})
        )
    if calls:
        raise ValueError(f"{where} calls tools, which only the assistant can: move tool_calls to its turn")
    if role == "user" and isinstance(row.get("input"), str) and row["input"]:
        message["input"] = row["input"]
    if role == "tool":
        names = ("name", "tool_call_id")
        message |= {name: row[name] for name in names if isinstance(row.get(name), str) and row[name]}
    return message


def reasoning_of(row: Mapping, where: str) -> str:
    """The reasoning that comes with an answer, in any of the fields REASONING; "" if there is none.

    Raises ValueError if two of the fields differ. `where` names the message in the error.
    """
    found = {row[field]: field for field in REASONING if isinstance(row.get(field), str) and row[field].strip()}
    if len(found) > 1:
        raise ValueError(f"{where}: {' and '.join(found.values())} differ: give only one of them")
    return next(iter(found), "")


def _content(value, where: str) -> str:
    """The text of a message, a string or a list of text parts. Raises ValueError for other values and parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{where} is {kind_of(value)}, not a string")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where} has a part that is not text: the models read text only")
    return "".join(part["text"] for part in value)


def check_turns(messages: list[Message], rule: dict, *, empty_answer: bool = False) -> None:
    """Raises ValueError unless the order of the turns is allowed and every turn has content.

    A turn of a tool, and a call of a tool, need no text. The last turn must be the user's or the assistant's.

    Args:
      messages: the turns.
      rule: the roles that may come before each role, ALTERNATING or FREE.
      empty_answer: whether the last turn may be empty.
    """
    before = None  # role of the previous turn
    for i, message in enumerate(messages):
        role = message["role"]
        if before not in rule[role]:
            place = f"follows {'another' if before == role else 'the'} {before} turn" if before else "comes first"
            names = " or ".join(sorted(other for other in rule[role] if other))
            allowed = [f"directly after a turn of {names}"] if names else []
            allowed += ["as the first turn"] if None in rule[role] else []
            raise ValueError(f"turn {i + 1} ({role}) {place}; it may stand only {' or '.join(allowed)}")
        says_something = message["content"].strip() or message.get("tool_calls") or role == "tool"
        if not says_something and not (empty_answer and i == len(messages) - 1):
            raise ValueError(f"turn {i + 1} ({role}) is empty")
        before = role
    if before not in ("user", "assistant"):
        end = f"the conversation ends with a {before} turn: end it with a user or an assistant turn"
        raise ValueError(end if before else "the conversation is empty")
