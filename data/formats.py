"""Raw records of public data sets read into camelid's own four kinds.

    {"kind": "text", "text"}                                          something to pretrain on
    {"kind": "chat", "messages"}                                      a conversation that ends with an answer
    {"kind": "prompt", "messages"}                                    a conversation that ends with a user turn
    {"kind": "preference", "messages", "chosen", "rejected", "margin"?, "safer"?, "chosen_safe"?, "rejected_safe"?}

A message is {"role": "system" | "user" | "assistant" | "tool", "content", "input"?}; `input` is the material of an
Alpaca instruction, on user turns only. `safer` is "chosen" or "rejected", `chosen_safe` and `rejected_safe` say whether
that answer is harmless. Fields that a format does not know ride along in "meta".

Each parser takes one raw record, checks it and returns a record, or raises ValueError with what is wrong.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from . import preferences
from .messages import (
    ALTERNATING,
    COLOSSALCHAT,
    FREE,
    LMFLOW,
    OPENAI,
    SHAREGPT,
    Message,
    add_system,
    check_turns,
    kind_of,
    optional_string,
    read_messages,
    string,
)


def parse(raw: dict, format: str = "auto") -> dict:
    """The record in `raw`; `format` is a name in FORMATS, or "auto" to go by the fields. ValueError if malformed."""
    if not isinstance(raw, dict):
        raise ValueError(f"a record is an object with named fields, not {kind_of(raw)}")
    # Tables of mixed records hold null for the fields that a row does not have.
    raw = {field: value for field, value in raw.items() if value is not None}
    chosen = FORMATS[detect(raw) if format == "auto" else format]
    record = chosen.parse(raw)
    meta = {field: value for field, value in raw.items() if field not in chosen.fields}
    if isinstance(meta.get("meta"), str) and meta["meta"].startswith("{"):
        meta["meta"] = json.loads(meta["meta"])  # as our own TFDS datasets hold it
    if isinstance(meta.get("meta"), dict):
        meta |= meta.pop("meta")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair stands alone ({error.object[error.start]!r})") from None
    return record | {"meta": meta} if meta else record


def unfold(raw: dict) -> list[dict]:
    """One raw object may hold many records under "instances": LMFlow's {"type", "instances"} and self-instruct's
    seeds {"instruction", "instances"}. Each instance becomes a raw record that repeats the fields around it."""
    if not isinstance(raw, dict) or not isinstance(raw.get("instances"), list):
        return [raw]
    around = {field: value for field, value in raw.items() if field != "instances"}
    return [around | instance if isinstance(instance, dict) else instance for instance in raw["instances"]]


def detect(raw: dict) -> str:
    """The name of the format whose fields `raw` has; ValueError where there is none."""
    has = raw.keys().__contains__
    if raw.get("kind") in KINDS and (has("messages") or has("text")):
        return "camelid"
    if has("conversations"):
        return "sharegpt"
    if raw.get("type") in tuple(LMFLOW_TYPES):
        return "lmflow"
    if has("context") and has("chosen"):
        return "colossalchat"
    if has("chosen") and has("rejected"):
        return "hh_rlhf" if _is_transcript(raw) else "trl"
    if has("messages"):
        return "colossalchat" if _first_message_has(raw["messages"], "from") else "openai"
    if has("response_0") and has("response_1"):
        return "pku_saferlhf"
    if has("prompt"):
        return "trl"
    if has("instruction"):
        return "alpaca"
    if has("text"):
        return "text"
    fields = ", ".join(map(str, raw)) or "(none)"
    raise ValueError(f"no format has the fields {fields}; known are {', '.join(FORMATS)}")


def _is_transcript(raw: dict) -> bool:
    sides = (raw.get("prompt", ""), raw["chosen"])
    return all(isinstance(side, str) for side in sides) and "\n\nAssistant:" in "".join(sides)


def _first_message_has(messages, field: str) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else messages
    return isinstance(first, dict) and field in first


def text(raw: dict) -> dict:
    """{"text"}: C4, the Pile, RedPajama, Wikipedia."""
    return {"kind": "text", "text": string(raw, "text")}


def alpaca(raw: dict) -> dict:
    """Stanford Alpaca's {"instruction", "input", "output"}, with LLaMA-Factory's `system` and `history` (earlier
    [instruction, output] pairs)."""
    question = {"role": "user", "content": string(raw, "instruction")}
    if optional_string(raw, "input"):
        question["input"] = raw["input"]
    answer = {"role": "assistant", "content": string(raw, "output")}
    messages = [*_history(raw.get("history", [])), question, answer]
    return _conversation(messages, ALTERNATING, optional_string(raw, "system"))


def _history(pairs) -> list[Message]:
    messages = []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(words, str) for words in pair):
            raise ValueError("history is not a list of [instruction, output] pairs")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def sharegpt(raw: dict) -> dict:
    """{"conversations": [{"from", "value"}], "system"?}, with `chosen` and `rejected` a preference."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.sharegpt_preference(raw)
    messages = read_messages(raw, "conversations", SHAREGPT)
    return _conversation(messages, ALTERNATING, optional_string(raw, "system"))


def openai(raw: dict) -> dict:
    """{"messages": [{"role", "content"}]}; `content` may be a list of text parts."""
    return _conversation(read_messages(raw, "messages", OPENAI), FREE, optional_string(raw, "system"))


def colossalchat(raw: dict) -> dict:
    """ColossalChat's {"messages": [{"from", "content"}]}; {"context", "chosen", "rejected"} is a preference."""
    if "context" in raw:
        return preferences.colossalchat_preference(raw)
    return _conversation(read_messages(raw, "messages", COLOSSALCHAT), FREE)


def trl(raw: dict) -> dict:
    """TRL's {"prompt"}, {"prompt", "completion"} and {"prompt"?, "chosen", "rejected"}; strings or messages."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.trl_preference(raw)
    prompt = preferences.trl_turns(raw, "prompt", "user")
    if "completion" not in raw:
        return _conversation(prompt, FREE)
    if "label" in raw:
        raise ValueError("label marks a single answer as good or bad; a preference needs chosen and rejected")
    return _conversation(prompt + preferences.trl_turns(raw, "completion", "assistant"), FREE)


def lmflow(raw: dict) -> dict:
    """One instance of an LMFlow file, with the file's `type` beside its own fields."""
    if raw.get("type") not in tuple(LMFLOW_TYPES):
        raise ValueError(f"type is {raw.get('type')!r}, not one of {', '.join(LMFLOW_TYPES)}")
    return LMFLOW_TYPES[raw["type"]](raw)


def _lmflow_text2text(raw: dict) -> dict:
    question = {"role": "user", "content": string(raw, "input")}
    return _conversation([question, {"role": "assistant", "content": string(raw, "output")}], ALTERNATING)


def _lmflow_conversation(raw: dict) -> dict:
    return _conversation(read_messages(raw, "messages", LMFLOW), ALTERNATING, optional_string(raw, "system"))


def camelid(raw: dict) -> dict:
    """A record as `parse` returns it, written to a file and read back."""
    if raw.get("kind") == "text":
        return text(raw)
    if raw.get("kind") == "preference":
        return preferences.camelid_preference(raw)
    record = _conversation(read_messages(raw, "messages", OPENAI), FREE)
    if record["kind"] != raw.get("kind"):
        raise ValueError(f"kind is {raw.get('kind')!r}, but the messages are a {record['kind']}")
    return record


def _conversation(messages: list[Message], rule: dict, system: str = "") -> dict:
    check_turns(messages, rule)
    kind = "prompt" if messages[-1]["role"] == "user" else "chat"
    return {"kind": kind, "messages": add_system(system, messages)}


KINDS = ("text", "chat", "prompt", "preference")

LMFLOW_TYPES = {
    "text_only": text,
    "text2text": _lmflow_text2text,
    "conversation": _lmflow_conversation,
    "paired_conversation": preferences.lmflow_preference,
    "paired_text_to_text": preferences.trl_preference,
}


class Format(NamedTuple):
    """A parser and the fields that it uses; a record's other fields are its "meta"."""

    parse: Callable[[dict], dict]
    fields: frozenset[str]


_ANSWERS = preferences.MARGIN_FIELDS | {"chosen", "rejected"}

FORMATS = {
    "text": Format(text, frozenset({"text"})),
    "alpaca": Format(alpaca, frozenset({"instruction", "input", "output", "system", "history"})),
    "sharegpt": Format(sharegpt, _ANSWERS | {"conversations", "system"}),
    "openai": Format(openai, frozenset({"messages", "system"})),
    "colossalchat": Format(colossalchat, _ANSWERS | {"messages", "context"}),
    "hh_rlhf": Format(preferences.hh_rlhf, _ANSWERS | {"prompt"}),
    "pku_saferlhf": Format(
        preferences.pku_saferlhf,
        preferences.MARGIN_FIELDS
        | {f"{field}_response_id" for field in ("better", "safer")}
        | {"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"},
    ),
    "trl": Format(trl, _ANSWERS | {"prompt", "completion"}),
    "lmflow": Format(lmflow, _ANSWERS | {"type", "text", "input", "output", "messages", "system", "prompt"}),
    "camelid": Format(camelid, _ANSWERS | {"kind", "text", "messages", *preferences.SAFETY_FIELDS}),
}
