"""What stands around a conversation in a record: system prompt, tools, documents, earlier turns, pictures."""

import json
from collections.abc import Mapping

from .values import kind_of, shown

SYSTEMS = ("system", "system_prompt", "system_message")
FIELDS = frozenset({*SYSTEMS, "tools"})
_PICTURES = ("image", "images", "video", "videos", "audio", "audios")


def system_of(raw: Mapping) -> str:
    """The system prompt that a record carries in a field of its own, "" where it has none."""
    found = {}
    for field in SYSTEMS:
        value = raw.get(field)
        if not value or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str):
            raise ValueError(f"{field} is {kind_of(value)}, not a string")
        found[value] = field
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found.values())} say different things: only one of them can stand")
    return next(iter(found), "")


def add_system(system: str, messages: list[dict]) -> list[dict]:
    """`messages` under a system prompt ("": none). ValueError where they begin with another one."""
    if not system:
        return messages
    if messages[0]["role"] == "system" and messages[0]["content"] != system:
        raise ValueError("a system field and a system turn: only one of them can stand")
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": system}, *messages]


def around(raw: Mapping) -> dict[str, list]:
    """{"tools"?, "documents"?} of a record, for the chat template. ValueError for what no template can be given."""
    for field in _PICTURES:
        value = raw.get(field)
        if any(value) if isinstance(value, list) else value:
            raise ValueError(f"{field} is not empty: a model of words cannot see or hear")
    if isinstance(raw.get("chat_template_kwargs"), dict) and any(raw["chat_template_kwargs"].values()):
        raise ValueError("chat_template_kwargs cannot be given to a template record by record")
    found = {}
    if tools := read_tools(raw):
        found["tools"] = tools
    if is_documents(documents := from_json(raw.get("documents"))):
        found["documents"] = documents
    return found


def is_documents(value) -> bool:
    """Whether these are documents as templates take them: a list of objects, not empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and item for item in value)


def read_tools(raw: Mapping) -> list[dict]:
    """The schemas of the tools that a record offers to the assistant: a list, or the JSON of one; [] for none."""
    value = from_json(raw.get("tools"))
    if value and raw.get("functions") and from_json(raw["functions"]) not in (value, _functions_of(value)):
        raise ValueError("tools and functions say different things: which of them does the assistant have?")
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
            raise ValueError(f"tools[{i}] is {shown(tool)}, not the schema of a tool")
    return tools


def _functions_of(tools) -> list:
    """Tools as they were written before 2023-11, under `functions`."""
    return [tool.get("function") if isinstance(tool, dict) else tool for tool in tools]


def _is_function(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def from_json(value):
    """The value, or what it spells if it is a string of JSON; "" for a blank string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else ""
    except (ValueError, RecursionError):
        return value


def read_tool_calls(row: Mapping, where: str) -> list[dict]:
    """The calls of an assistant's turn as OpenAI writes them, {"id"?, "type", "function": {"name", "arguments"}}, from
    `tool_calls`, or `function_call` of before 2023-11; [] for none. Arguments that spell a JSON object become it."""
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
        raise ValueError(f"{where} has a tool call without the name of a function: {shown(call)}")
    arguments = function.get("arguments", {})
    spelled = from_json(arguments)
    arguments = spelled if isinstance(spelled, dict) else {} if arguments is None else arguments
    if not isinstance(arguments, dict | str):
        raise ValueError(f"{where} calls {shown(function['name'])} with arguments that are {kind_of(arguments)}")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    return identity | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def with_calls(raw: Mapping, messages: list[dict]) -> list[dict]:
    """The messages of a record, and if it has tools, with calls as such where a turn's words are the JSON of them: so
    ShareGPT and LMFlow write them."""
    if not read_tools(raw):
        return messages
    spelled = ((message, _spelled_calls(message)) for message in messages)
    return [message | {"content": "", "tool_calls": calls} if calls else message for message, calls in spelled]


def _spelled_calls(message: Mapping) -> list[dict]:
    """The calls that the words of an assistant's turn are the JSON of, [] where they are not."""
    value = from_json(message["content"]) if message["role"] == "assistant" else None
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not all(isinstance(c, dict) and {"name", "arguments"} <= c.keys() for c in calls):
        return []
    try:
        return [_tool_call(call, "") for call in calls]
    except ValueError:
        return []


def history_turns(pairs) -> list[dict]:
    """The turns of earlier [question, answer] pairs, or of the JSON of them. ValueError where they are not that."""
    pairs, messages = from_json(pairs), []
    for pair in pairs if isinstance(pairs, list) else [pairs] if pairs else []:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(words, str) for words in pair):
            raise ValueError("history is not a list of [instruction, output] pairs")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages
