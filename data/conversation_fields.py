"""Reads what surrounds the messages of a record: system prompt, tools, documents, earlier turns. Media are refused."""

import json
from collections.abc import Mapping

from ..errors import shown
from .json_values import kind_of

SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
FIELDS = frozenset({*SYSTEM_FIELDS, "tools"})
_MEDIA_FIELDS = ("image", "images", "video", "videos", "audio", "audios")


def system_of(raw: Mapping) -> str:
    """The system prompt in a field of the record (SYSTEM_FIELDS); "" if there is none.

    Raises ValueError if it is not a string, or if two fields differ.
    """
    found = {}
    for field in SYSTEM_FIELDS:
        value = raw.get(field)
        if not value or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str):
            raise ValueError(f"{field} is {kind_of(value)}, not a string")
        found[value] = field
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found.values())} differ: give only one of them")
    return next(iter(found), "")


def add_system(system: str, messages: list[dict]) -> list[dict]:
    """`messages` with the system prompt `system` in front; unchanged if it is "".

    Raises ValueError if the messages begin with another system prompt.
    """
    if not system:
        return messages
    if messages[0]["role"] == "system" and messages[0]["content"] != system:
        raise ValueError("the system field differs from the system turn: give only one of them")
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": system}, *messages]


def tools_and_documents(raw: Mapping) -> dict[str, list]:
    """The fields "tools" and "documents" of a record, as far as it has them, for the chat template.

    Raises ValueError for media, and for `chat_template_kwargs`.
    """
    for field in _MEDIA_FIELDS:
        value = raw.get(field)
        if any(value) if isinstance(value, list) else value:
            raise ValueError(f"{field} is not empty: the models read text only")
    if isinstance(raw.get("chat_template_kwargs"), dict) and any(raw["chat_template_kwargs"].values()):
        raise ValueError("chat_template_kwargs is not supported: a chat template cannot take settings from a record")
    found = {}
    if tools := read_tools(raw):
        found["tools"] = tools
    if is_document_list(documents := from_json(raw.get("documents"))):
        found["documents"] = documents
    return found


def is_document_list(value) -> bool:
    """Whether `value` is a non-empty list of non-empty objects, the form in which templates take documents."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and item for item in value)


def read_tools(raw: Mapping) -> list[dict]:
    """The schemas of the tools that a record offers to the assistant, a list of objects; [] if there are none.

    They are read from `tools`, a list or its JSON, or from `functions`, OpenAI's field before November 2023.
    """
    value = from_json(raw.get("tools"))
    if value and raw.get("functions") and from_json(raw["functions"]) not in (value, _functions_of(value)):
        raise ValueError("tools and functions differ: give only one of them")
    if value is None and isinstance(raw.get("functions"), list) and all(map(_is_function, raw["functions"])):
        value = [{"type": "function", "function": function} for function in raw["functions"]]  # before 2023-11
    value = [value] if isinstance(value, dict) else value
    if not value:
        return []
    if not isinstance(value, list):
        raise ValueError(f"tools is {shown(value)}, not a list of schemas")
    tools = [tool for tool in map(from_json, value) if tool not in (None, "", {})]
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise ValueError(f"tools[{i}] is {shown(tool)}, not an object with the schema of a tool")
    return tools


def _functions_of(tools) -> list:
    """The tools in the form of the field `functions`."""
    return [tool.get("function") if isinstance(tool, dict) else tool for tool in tools]


def _is_function(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def from_json(value):
    """The value that a string of JSON holds; "" for a blank string. Other values, and other text, are unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else ""
    except (ValueError, RecursionError):
        return value


def read_tool_calls(row: Mapping, where: str) -> list[dict]:
    """The tool calls of an assistant's turn: [{"id"?, "type", "function": {"name", "arguments"}}]; [] if it has none.

    They are read from `tool_calls`, or from `function_call`, OpenAI's field before November 2023. Arguments that are
    the JSON of an object become that object. Raises ValueError for a malformed call; `where` names the turn in the
    error.
    """
    value = from_json(row.get("tool_calls")) or from_json(row.get("function_call"))
    if not value:
        return []
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list):
        raise ValueError(f"{where} has tool_calls that are {shown(calls)}, not a list of calls")
    return [_tool_call(call, where) for call in map(from_json, calls)]


def _tool_call(call, where: str) -> dict:
    function = from_json(call.get("function", call)) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{where} has a tool call without a function name: {shown(call)}")
    arguments = function.get("arguments", {})
    spelled = from_json(arguments)
    arguments = spelled if isinstance(spelled, dict) else {} if arguments is None else arguments
    if not isinstance(arguments, dict | str):
        problem = f"with arguments that are {kind_of(arguments)}, not an object"
        raise ValueError(f"{where} calls {shown(function['name'])} {problem}")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    return identity | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def with_calls(raw: Mapping, messages: list[dict]) -> list[dict]:
    """The messages of a record; if it has tools, turns whose content is the JSON of tool calls become such calls.

    ShareGPT and LMFlow write calls as JSON text. Messages of a record without tools are unchanged.
    """
    if not read_tools(raw):
        return messages
    spelled = ((message, _calls_in_json(message)) for message in messages)
    return [message | {"content": "", "tool_calls": calls} if calls else message for message, calls in spelled]


def _calls_in_json(message: Mapping) -> list[dict]:
    """The tool calls that the content of an assistant's turn spells in JSON; [] if it does not."""
    value = from_json(message["content"]) if message["role"] == "assistant" else None
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not all(isinstance(c, dict) and {"name", "arguments"} <= c.keys() for c in calls):
        return []
    try:
        return [_tool_call(call, "") for call in calls]
    except ValueError:
        return []


def history_turns(pairs) -> list[dict]:
    """The turns of earlier [question, answer] pairs, a list or its JSON. Raises ValueError for any other value."""
    pairs, messages = from_json(pairs), []
    for pair in pairs if isinstance(pairs, list) else [pairs] if pairs else []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(words, str) for words in pair):
            raise ValueError("history is not a list of [instruction, output] pairs")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages
