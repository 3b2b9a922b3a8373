"""Raw records of public data sets read into camelid's own four kinds.

    {"kind": "text", "text"}                                          something to pretrain on
    {"kind": "chat", "messages", "label"?}                            a conversation that ends with an answer
    {"kind": "prompt", "messages"}                                    a conversation that ends with a user turn
    {"kind": "preference", "messages", "chosen", "rejected", "margin"?, "safer"?, "chosen_safe"?, "rejected_safe"?}

`label` says whether the answer is a good one. `safer` is "chosen" or "rejected", `chosen_safe` and `rejected_safe` say
whether that answer is harmless. A conversation may have `tools`, the schemas of functions that the assistant may call,
and `documents`, both for the chat template. Fields that a format does not know ride along in "meta".

A message is {"role": "system" | "user" | "assistant" | "tool", "content"}, and

    "input"                   the material of an Alpaca instruction, on user turns
    "train"                   False on a turn of the assistant that is not trained on
    "tool_calls"              of the assistant: [{"type": "function", "function": {"name", "arguments"}}]
    "reasoning_content"       what the assistant thought before it answered
    "name", "tool_call_id"    on the turns of tools

Each parser takes one raw record, checks it and returns a record, or raises ValueError with what is wrong.
"""

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from . import context, labels, preferences
from .messages import (
    ALTERNATING,
    COLOSSALCHAT,
    FREE,
    LMFLOW,
    OPENAI,
    SHAREGPT,
    Message,
    check_turns,
    optional_string,
    read_messages,
    reasoning_of,
    string,
)
from .values import kind_of, plain, present, shown

READING = 3
"""Raised when a record gives other messages than before: token caches are then built anew."""


def parse(raw: dict, format: str = "auto") -> dict:
    """The record in `raw`; `format` is a name in FORMATS, or "auto" to go by the fields. ValueError if malformed."""
    if not isinstance(raw, dict):
        raise ValueError(f"a record is an object with named fields, not {kind_of(raw)}")
    raw = present(raw)
    chosen = FORMATS[detect(raw) if format == "auto" else format]
    record = chosen.parse(raw)
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair stands alone ({error.object[error.start]!r})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (TypeError, ValueError):
        raise ValueError("tools, tool_calls or documents hold a value that JSON does not have") from None
    meta = _meta(raw, chosen.fields | _used(record))
    return record | {"meta": meta} if meta else record


def _used(record: dict) -> set[str]:
    """The fields that mean the same in all formats, as far as the record holds what they say."""
    if record["kind"] == "text":
        return set()
    used = {*context.FIELDS, *(field for field in ("documents", "label") if field in record)}
    return used | ({"kto_tag"} if "label" in record else set()) | ({"functions"} if "tools" in record else set())


def _meta(raw: dict, used: Iterable[str]) -> dict:
    """The other fields of a record, in a form that can be written anywhere; those in its "meta" are put among them."""
    meta = {field: value for field, value in raw.items() if field not in used}
    inner = meta.get("meta")
    if isinstance(inner, str) and inner.startswith("{"):
        inner = context.from_json(inner)  # as our own TFDS datasets hold it
    if isinstance(inner, dict):
        del meta["meta"]
        meta |= inner
    return plain(meta)


def unfold(raw: dict) -> list[dict]:
    """One raw object may hold many records under "instances": LMFlow's {"type", "instances"} and self-instruct's
    seeds {"instruction", "instances"}. Each instance becomes a raw record that repeats the fields around it."""
    if not isinstance(raw, dict) or not isinstance(raw.get("instances"), list):
        return [raw]
    if raw.get("type") not in tuple(LMFLOW_TYPES) and ("instruction" not in raw or raw.get("output") is not None):
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
    if has("instruction") and has("chosen") and has("rejected"):
        return "alpaca"
    if has("context") and has("chosen"):
        return "colossalchat"
    if has("messages") and has("rejected") and (isinstance(raw.get("chosen"), dict) or _goes_on(raw)):
        return "openai"
    if has("chosen") and has("rejected"):
        return "hh_rlhf" if _is_transcript(raw) else "trl"
    if has("messages"):
        return "colossalchat" if _first_message_has(raw["messages"], "from") else "openai"
    if has("response_0") and has("response_1"):
        return "pku_saferlhf"
    if has("prompt"):
        return "hh_rlhf" if _is_transcript(raw) else "trl"
    if has("instruction"):
        return "alpaca"
    if has("conversation"):
        return "sharegpt"
    if has("text"):
        return "text"
    if has("type") and has("instances"):
        return "lmflow"  # which says that it does not know the type
    fields = ", ".join(name if name.isprintable() else repr(name) for name in map(str, raw)) or "(none)"
    fields = fields if len(fields) < 300 else f"{fields[:300]}..."
    raise ValueError(f"no format has the fields {fields}; known are {', '.join(FORMATS)}")


def _is_transcript(raw: dict) -> bool:
    parts = (raw.get("prompt", ""), raw.get("chosen", ""))
    return all(isinstance(part, str) for part in parts) and preferences.is_transcript("".join(parts))


def _goes_on(raw: dict) -> bool:
    """Whether `chosen` goes on from `messages`: a list of turns after one of the user's. TRL's own files have there a
    copy of the chosen conversation, its answer included."""
    messages, chosen = raw["messages"], raw.get("chosen")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(chosen, list) and isinstance(last, dict) and last.get("role") not in (None, "assistant")


def _first_message_has(messages, field: str) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else messages
    return isinstance(first, dict) and field in first


def text(raw: dict) -> dict:
    """{"text"}: C4, the Pile, RedPajama, Wikipedia."""
    return {"kind": "text", "text": string(raw, "text")}


def alpaca(raw: dict) -> dict:
    """Stanford Alpaca's {"instruction", "input", "output"}, with LLaMA-Factory's `system` and `history` (earlier
    [instruction, output] pairs), `kto_tag`, or `chosen` and `rejected` in place of `output`."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.alpaca_preference(raw)
    answer = {"role": "assistant", "content": _answer(raw, "output")}
    return _conversation(raw, [*preferences.alpaca_turns(raw), answer], ALTERNATING)


def _answer(raw: dict, field: str) -> str:
    """The words of a single answer; only one that is called bad may be empty."""
    return optional_string(raw, field) if field in raw and labels.verdict(raw) is False else string(raw, field)


def sharegpt(raw: dict) -> dict:
    """{"conversations" or "conversation": [{"from", "value"}], "system"?}, with `chosen` and `rejected` a
    preference."""
    field = "conversation" if "conversation" in raw and "conversations" not in raw else "conversations"
    if "chosen" in raw or "rejected" in raw:
        return preferences.preference_after(raw, field, SHAREGPT, ALTERNATING)
    return _conversation(raw, context.with_calls(raw, read_messages(raw, field, SHAREGPT)), ALTERNATING)


def openai(raw: dict) -> dict:
    """{"messages": [{"role", "content"}]}; `content` may be a list of text parts; with messages `chosen` and `rejected`
    a preference."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.preference_after(raw, "messages", OPENAI, FREE)
    return _conversation(raw, read_messages(raw, "messages", OPENAI), FREE)


def colossalchat(raw: dict) -> dict:
    """ColossalChat's {"messages": [{"from", "content"}]}; {"context", "chosen", "rejected"} is a preference."""
    if "context" in raw:
        return preferences.preference_after(raw, "context", COLOSSALCHAT, FREE)
    return _conversation(raw, read_messages(raw, "messages", COLOSSALCHAT), FREE)


def hh_rlhf(raw: dict) -> dict:
    """Anthropic's transcripts in `chosen` and `rejected`, or in `prompt` and, where there is one, `completion`."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.hh_preference(raw)
    completion = _answer(raw, "completion") if "completion" in raw else ""
    messages = preferences.transcript(string(raw, "prompt") + completion, "prompt")
    if "completion" not in raw and not messages[-1]["content"]:
        messages.pop()  # it ends where the answer begins
    return _conversation(raw, messages, ALTERNATING)


def trl(raw: dict) -> dict:
    """TRL's {"prompt"}, {"prompt", "completion", "label"?} and {"prompt"?, "chosen", "rejected"}; strings or
    messages."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.trl_preference(raw)
    prompt = [*preferences.trl_history(raw), *preferences.trl_turns(raw, "prompt", "user")]
    if "completion" not in raw:
        return _conversation(raw, prompt, FREE)
    label = labels.verdict(raw, required=True)
    if isinstance(raw["completion"], str):
        completion = [{"role": "assistant", "content": _answer(raw, "completion")}]
    else:
        completion = read_messages(raw, "completion", OPENAI)
    if label is not None and any(message["role"] == "user" for message in completion):
        raise ValueError("completion holds a user turn, and label is of one answer")
    return _conversation(raw, preferences.follow(prompt, completion), FREE)


def lmflow(raw: dict) -> dict:
    """One instance of an LMFlow file, with the file's `type` beside its own fields."""
    if raw.get("type") not in tuple(LMFLOW_TYPES):
        raise ValueError(f"type is {shown(raw.get('type'))}, not one of {', '.join(LMFLOW_TYPES)}")
    return LMFLOW_TYPES[raw["type"]](raw)


def _lmflow_text2text(raw: dict) -> dict:
    question = {"role": "user", "content": string(raw, "input")}
    return _conversation(raw, [question, {"role": "assistant", "content": _answer(raw, "output")}], ALTERNATING)


def _lmflow_conversation(raw: dict) -> dict:
    return _conversation(raw, context.with_calls(raw, read_messages(raw, "messages", LMFLOW)), ALTERNATING)


def camelid(raw: dict) -> dict:
    """A record as `parse` returns it, written to a file and read back."""
    if raw.get("kind") == "text":
        return text(raw)
    if raw.get("kind") == "preference":
        return preferences.camelid_preference(raw)
    record = _conversation(raw, read_messages(raw, "messages", OPENAI), FREE)
    if record["kind"] != raw.get("kind"):
        raise ValueError(f"kind is {shown(raw.get('kind'))}, but the messages are a {record['kind']}")
    return record


def _conversation(raw: dict, messages: list[Message], rule: dict) -> dict:
    """The record of a conversation, with what stands around it in the fields that all formats share."""
    messages = context.add_system(context.system_of(raw), messages)
    if messages[-1]["role"] == "user":
        check_turns(messages, rule)
        return {"kind": "prompt", "messages": messages, **context.around(raw)}
    label = labels.verdict(raw)
    check_turns(messages, rule, empty_answer=label is False)
    is_used = labels.is_used(raw)
    if label is not None and not is_used:
        raise ValueError("a label beside a weight or train that says to learn nothing: give one of them")
    thoughts = reasoning_of(raw, "the record")
    if thoughts and "reasoning_content" not in messages[-1]:
        messages = [*messages[:-1], messages[-1] | {"reasoning_content": thoughts}]
    untrained = len(messages) if not is_used else len(messages) - 1 if labels.truth(raw.get("mask_history")) else 0
    messages = [*map(_untrained, messages[:untrained]), *messages[untrained:]]
    return {"kind": "chat", "messages": messages} | ({} if label is None else {"label": label}) | context.around(raw)


def _untrained(message: Message) -> Message:
    return message | {"train": False} if message["role"] == "assistant" else message


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
    "alpaca": Format(alpaca, _ANSWERS | {"instruction", "input", "output", "history"}),
    "sharegpt": Format(sharegpt, _ANSWERS | {"conversations", "conversation"}),
    "openai": Format(openai, _ANSWERS | {"messages"}),
    "colossalchat": Format(colossalchat, _ANSWERS | {"messages", "context"}),
    "hh_rlhf": Format(hh_rlhf, _ANSWERS | {"prompt", "completion"}),
    "pku_saferlhf": Format(
        preferences.pku_saferlhf,
        preferences.MARGIN_FIELDS
        | {f"{field}_response_id" for field in ("better", "safer")}
        | {"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"},
    ),
    "trl": Format(trl, _ANSWERS | {"prompt", "completion", "history"}),
    "lmflow": Format(lmflow, _ANSWERS | {"type", "text", "input", "output", "messages", "prompt"}),
    "camelid": Format(
        camelid, _ANSWERS | {"kind", "text", "messages", "label", "documents", *preferences.SAFETY_FIELDS}
    ),
}
