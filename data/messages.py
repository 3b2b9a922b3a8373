"""Messages as public data sets write them, read into {"role", "content", ...} and checked."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .context import read_tool_calls
from .labels import is_trained
from .values import kind_of, present, shown

Message = dict[str, Any]


# In ShareGPT's function calling the model's call is a turn of its own, and so is the result.
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}


class Dialect(NamedTuple):
    """How a format spells a message: the fields of speaker and words, its own before those that are read in their
    absence, and the names of our four roles."""

    speaker: tuple[str, str] = ("role", "from")
    words: tuple[str, str] = ("content", "value")
    roles: Mapping[str, str] = _ROLES


OPENAI = Dialect()
COLOSSALCHAT = Dialect(speaker=("from", "role"))
SHAREGPT = Dialect(speaker=("from", "role"), words=("value", "content"))
LMFLOW = Dialect(roles=_ROLES | {"function": "assistant"})  # there the call, and OpenAI's result

REASONING = ("reasoning_content", "thinking", "reasoning")

# The roles that may stand before each role; None is the beginning.
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
    """The words in `field`; ValueError where it is missing, blank or no string."""
    if field not in raw:
        raise ValueError(f"{field} is missing")
    if not isinstance(raw[field], str):
        raise ValueError(f"{field} is {kind_of(raw[field])}, not a string")
    if not raw[field].strip():
        raise ValueError(f"{field} is empty")
    return raw[field]


def optional_string(raw: dict, field: str) -> str:
    """Like `string`, but "" where the field is missing or blank."""
    blank = field not in raw or (isinstance(raw[field], str) and not raw[field].strip())
    return "" if blank else string(raw, field)


def read_messages(raw: dict, field: str, dialect: Dialect) -> list[Message]:
    """The messages in `field`: a list, a single message, or columns ({"role": [...], "content": [...]}), the form
    in which Parquet and TFDS hand over sequences of objects. A system turn that says nothing is none. ValueError names
    the message that is wrong."""
    if field not in raw:
        raise ValueError(f"{field} is missing")
    rows = _rows(raw[field], field, dialect)
    found = [_message(row, dialect, f"{field}[{i}]") for i, row in enumerate(rows)]
    messages = [message for message in found if message["role"] != "system" or message["content"].strip()]
    if not messages:
        raise ValueError(f"{field} is empty")
    return messages


def _rows(value, field: str, dialect: Dialect) -> list:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{field} is {kind_of(value)}, not a list of messages")
    if not isinstance(value.get(_field(value, dialect.speaker)), list):
        return [value]
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError(f"{field} has columns of different lengths")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _field(row: Mapping, names: tuple[str, str]) -> str:
    """Which of two names of a field the row has, the first where it has neither."""
    return names[1] if names[0] not in row and names[1] in row else names[0]


def _message(row, dialect: Dialect, where: str) -> Message:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {kind_of(row)}, not a message")
    row = present(row)
    speaker = row.get(_field(row, dialect.speaker))
    if not isinstance(speaker, str):
        raise ValueError(f"{where} has no {dialect.speaker[0]}")
    role = dialect.roles.get(speaker.lower())
    if role is None:
        raise ValueError(f"{where} has the unknown role {shown(speaker)} (known: {', '.join(sorted(dialect.roles))})")
    calls = read_tool_calls(row, where)
    field = _field(row, dialect.words)
    words = row.get(field, "" if calls or role == "system" else None)
    message = {"role": role, "content": _content(words, f"{where}.{field}")}
    trained = is_trained(row, role, where)
    if role == "assistant":
        thoughts = reasoning_of(row, where)
        more = {"tool_calls": calls, "reasoning_content": thoughts}
        return (
            message
            | {name: value for name, value in more.items() if value}
            | ({"train": False} if trained is False else {})
        )
    if calls:
        raise ValueError(f"{where} calls tools, which only the assistant can")
    if role == "user" and isinstance(row.get("input"), str) and row["input"]:
        message["input"] = row["input"]
    if role == "tool":
        names = ("name", "tool_call_id")
        message |= {name: row[name] for name in names if isinstance(row.get(name), str) and row[name]}
    return message


def reasoning_of(row: Mapping, where: str) -> str:
    """What an answer's author thought before it, "" where the row does not say."""
    found = {row[field]: field for field in REASONING if isinstance(row.get(field), str) and row[field].strip()}
    if len(found) > 1:
        raise ValueError(f"{where} says different things in {' and '.join(found.values())}")
    return next(iter(found), "")


def _content(value, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{where} is {kind_of(value)}, not a string")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where} has a part that is not text")
    return "".join(part["text"] for part in value)


def check_turns(messages: list[Message], rule: dict, *, empty_answer: bool = False) -> None:
    """Raises ValueError unless the turns follow each other by `rule`, the last one is a user's or an assistant's,
    and each but a tool's says something (`empty_answer`: the last may say nothing)."""
    before = None
    for i, message in enumerate(messages):
        role = message["role"]
        if before not in rule[role]:
            place = f"follows {'another' if before == role else 'the'} {before} turn" if before else "comes first"
            raise ValueError(f"turn {i + 1} ({role}) {place}")
        says_something = message["content"].strip() or message.get("tool_calls") or role == "tool"
        if not says_something and not (empty_answer and i == len(messages) - 1):
            raise ValueError(f"turn {i + 1} ({role}) is empty")
        before = role
    if before not in ("user", "assistant"):
        raise ValueError(f"the conversation ends with a {before} turn" if before else "the conversation is empty")
