"""Reads raw records of public data sets as camelid's own four kinds of records:

    {"kind": "text", "text"}                                          text to pretrain on
    {"kind": "chat", "messages", "label"?}                            a conversation that ends with an answer
    {"kind": "prompt", "messages"}                                    a conversation that ends with a user turn
    {"kind": "preference", "messages", "chosen", "rejected", "margin"?, "safer"?, "chosen_safe"?, "rejected_safe"?}

`label` says whether the answer is good. `safer` is "chosen" or "rejected". `chosen_safe` and `rejected_safe` say
whether the chosen and the rejected answer are harmless. A conversation may have `tools`, the schemas of functions that
the assistant may call, and `documents`, both for the chat template. Fields that a format does not know are kept in
"meta".

A message is {"role": "system" | "user" | "assistant" | "tool", "content"}, with optional fields:

    "input"                   user turns: the input of an Alpaca instruction
    "train"                   assistant turns: False for a turn that is not trained on
    "tool_calls"              assistant turns: [{"type": "function", "function": {"name", "arguments"}}]
    "reasoning_content"       assistant turns: the reasoning before the answer
    "name", "tool_call_id"    tool turns: the name of the tool and the id of the call

Each parser takes one raw record and returns a record, or raises ValueError with the reason.
"""

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import shown
from . import conversation_fields, labels, preferences
from .columns import ANSWER, CONTEXT, QUESTION, SHORT_ANSWER, SHORT_QUESTION, qa_columns
from .json_values import kind_of, plain, present
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

READING = 3
"""Raised by one when the parsers give other messages than before, so that token caches are rebuilt."""


def parse(raw: dict, format: str = "auto") -> dict:
    """Parses one raw record.

    Args:
      raw: the fields of the raw record.
      format: a name in FORMATS, or "auto" to detect the format from the fields.

    Returns:
      A record of one of the four kinds in the module docstring, with "meta" if it has other fields.

    Raises:
      ValueError: the record is malformed.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"a record must be an object with named fields, not {kind_of(raw)}")
    raw = present(raw)
    chosen = FORMATS[detect(raw) if format == "auto" else format]
    record = chosen.parse(raw)
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        raise ValueError(f"it has the lone surrogate {surrogate!r}, which UTF-8 cannot write: remove it") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (TypeError, ValueError):
        raise ValueError("tools, tool_calls or documents hold a value that JSON cannot write") from None
    used = qa_columns(raw) if chosen.parse is qa else chosen.fields
    meta = _meta(raw, _shared_fields_of(record).union(used))
    return record | {"meta": meta} if meta else record


def _shared_fields_of(record: dict) -> set[str]:
    """The raw fields, with the same meaning in all formats, that `record` makes use of."""
    if record["kind"] == "text":
        return set()
    used = {*conversation_fields.FIELDS, *(field for field in ("documents", "label") if field in record)}
    return used | ({"kto_tag"} if "label" in record else set()) | ({"functions"} if "tools" in record else set())


def _meta(raw: dict, used: Iterable[str]) -> dict:
    """The raw fields that are not in `used`, and the fields of a raw "meta", as values that JSON can hold."""
    meta = {field: value for field, value in raw.items() if field not in used}
    inner = meta.get("meta")
    if isinstance(inner, str) and inner.startswith("{"):
        inner = conversation_fields.from_json(inner)  # as `tfds_builder` writes it
    if isinstance(inner, dict):
        del meta["meta"]
        meta |= inner
    return plain(meta)


def unfold(raw: dict) -> list[dict]:
    """The raw records in one raw object: one for each element of "instances", or the object itself.

    "instances" is found in LMFlow's {"type", "instances"} and in self-instruct's {"instruction", "instances"}. Each
    element becomes a raw record that repeats the fields around the list.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("instances"), list):
        return [raw]
    if raw.get("type") not in tuple(LMFLOW_TYPES) and ("instruction" not in raw or raw.get("output") is not None):
        return [raw]
    around = {field: value for field, value in raw.items() if field != "instances"}
    return [around | instance if isinstance(instance, dict) else instance for instance in raw["instances"]]


def detect(raw: dict) -> str:
    """The name in FORMATS of the format that the fields of `raw` fit. Raises ValueError if they fit none."""
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
    if has("messages") and has("rejected") and (isinstance(raw.get("chosen"), dict) or _continues_messages(raw)):
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
        return "lmflow"  # its parser raises the error for an unknown type
    if qa_columns(raw)[0]:
        return "qa"  # last, so that other formats may have such a field; its parser raises the error for no answer
    fields = ", ".join(name if name.isprintable() else repr(name) for name in map(str, raw)) or "(none)"
    fields = fields if len(fields) < 300 else f"{fields[:300]}..."
    raise ValueError(f"no format has the fields {fields}; use those of {', '.join(FORMATS)}")


def _is_transcript(raw: dict) -> bool:
    """Whether `prompt` and `chosen` together are a transcript of "Human:" and "Assistant:" turns."""
    parts = (raw.get("prompt", ""), raw.get("chosen", ""))
    return all(isinstance(part, str) for part in parts) and preferences.is_transcript("".join(parts))


def _continues_messages(raw: dict) -> bool:
    """Whether `chosen` is a list of turns that continues `messages`, which end with a turn of the user.

    In TRL's own files `messages` is instead a copy of the chosen conversation, with its answer.
    """
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
    """Stanford Alpaca's {"instruction", "input", "output"}.

    LLaMA-Factory's fields are read too: `system`, `history` (earlier [instruction, output] pairs), `kto_tag`, and
    `chosen` and `rejected` in place of `output`.
    """
    if "chosen" in raw or "rejected" in raw:
        return preferences.alpaca_preference(raw)
    answer = {"role": "assistant", "content": _answer(raw, "output")}
    return _conversation(raw, [*preferences.alpaca_turns(raw), answer], ALTERNATING)


def _answer(raw: dict, field: str) -> str:
    """The text of an answer in `field`; it may be empty only if the record labels it bad."""
    return optional_string(raw, field) if field in raw and labels.answer_label(raw) is False else string(raw, field)


def sharegpt(raw: dict) -> dict:
    """{"conversations" or "conversation": [{"from", "value"}], "system"?}; a preference with `chosen`, `rejected`."""
    field = "conversation" if "conversation" in raw and "conversations" not in raw else "conversations"
    if "chosen" in raw or "rejected" in raw:
        return preferences.preference_after(raw, field, SHAREGPT, ALTERNATING)
    return _conversation(raw, conversation_fields.with_calls(raw, read_messages(raw, field, SHAREGPT)), ALTERNATING)


def qa(raw: dict) -> dict:
    """{"question", "answer", "context"?}: GSM8K, and tables of questions. The names may be Chinese (`columns`).

    The context is the input of the user's turn, which follows the question.
    """
    question, answer, context = qa_columns(raw)
    turn = {"role": "user", "content": string(raw, question or QUESTION[0])}
    if context and (more := optional_string(raw, context)):
        turn["input"] = more
    return _conversation(raw, [turn, {"role": "assistant", "content": _answer(raw, answer or ANSWER[0])}], ALTERNATING)


def openai(raw: dict) -> dict:
    """{"messages": [{"role", "content"}]}, where `content` may be a list of text parts; with `chosen` and `rejected`, a
    preference.
    """
    if "chosen" in raw or "rejected" in raw:
        return preferences.preference_after(raw, "messages", OPENAI, FREE)
    return _conversation(raw, read_messages(raw, "messages", OPENAI), FREE)


def colossalchat(raw: dict) -> dict:
    """ColossalChat's {"messages": [{"from", "content"}]}; {"context", "chosen", "rejected"} is a preference."""
    if "context" in raw:
        return preferences.preference_after(raw, "context", COLOSSALCHAT, FREE)
    return _conversation(raw, read_messages(raw, "messages", COLOSSALCHAT), FREE)


def hh_rlhf(raw: dict) -> dict:
    """Anthropic's transcripts: `chosen` and `rejected`, or `prompt` with an optional `completion`."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.hh_preference(raw)
    completion = _answer(raw, "completion") if "completion" in raw else ""
    messages = preferences.transcript(string(raw, "prompt") + completion, "prompt")
    if "completion" not in raw and not messages[-1]["content"]:
        messages.pop()  # the transcript ends with "Assistant:"
    return _conversation(raw, messages, ALTERNATING)


def trl(raw: dict) -> dict:
    """TRL's {"prompt"}, {"prompt", "completion", "label"?} and {"prompt"?, "chosen", "rejected"}: text or messages."""
    if "chosen" in raw or "rejected" in raw:
        return preferences.trl_preference(raw)
    prompt = [*preferences.trl_history(raw), *preferences.trl_turns(raw, "prompt", "user")]
    if "completion" not in raw:
        return _conversation(raw, prompt, FREE)
    label = labels.answer_label(raw, required=True)
    if isinstance(raw["completion"], str):
        completion = [{"role": "assistant", "content": _answer(raw, "completion")}]
    else:
        completion = read_messages(raw, "completion", OPENAI)
    if label is not None and any(message["role"] == "user" for message in completion):
        raise ValueError("completion holds a user turn, but a label is for one answer: remove the label")
    return _conversation(raw, preferences.follow(prompt, completion), FREE)


def lmflow(raw: dict) -> dict:
    """One instance of an LMFlow file, with the `type` of the file among its fields."""
    if raw.get("type") not in tuple(LMFLOW_TYPES):
        raise ValueError(f"type is {shown(raw.get('type'))}, not one of {', '.join(LMFLOW_TYPES)}")
    return LMFLOW_TYPES[raw["type"]](raw)


def _lmflow_text2text(raw: dict) -> dict:
    question = {"role": "user", "content": string(raw, "input")}
    return _conversation(raw, [question, {"role": "assistant", "content": _answer(raw, "output")}], ALTERNATING)


def _lmflow_conversation(raw: dict) -> dict:
    return _conversation(raw, conversation_fields.with_calls(raw, read_messages(raw, "messages", LMFLOW)), ALTERNATING)


def camelid(raw: dict) -> dict:
    """A record in the form that `parse` returns, written to a file and read back."""
    if raw.get("kind") == "text":
        return text(raw)
    if raw.get("kind") == "preference":
        return preferences.camelid_preference(raw)
    record = _conversation(raw, read_messages(raw, "messages", OPENAI), FREE)
    if record["kind"] != raw.get("kind"):
        problem = f"kind is {shown(raw.get('kind'))}, but the messages are those of a {record['kind']} record"
        raise ValueError(f"{problem}: set kind to {record['kind']}")
    return record


def _conversation(raw: dict, messages: list[Message], rule: dict) -> dict:
    """The chat or prompt record of a conversation, with the fields that all formats share.

    Args:
      raw: the raw record.
      messages: its messages.
      rule: the roles that may come before each role, ALTERNATING or FREE.
    """
    messages = conversation_fields.add_system(conversation_fields.system_of(raw), messages)
    if messages[-1]["role"] == "user":
        check_turns(messages, rule)
        return {"kind": "prompt", "messages": messages, **conversation_fields.tools_and_documents(raw)}
    label = labels.answer_label(raw)
    check_turns(messages, rule, empty_answer=label is False)
    is_used = labels.is_trained_record(raw)
    if label is not None and not is_used:
        raise ValueError("the record has a label, and a weight or train of 0: give only one of the two")
    thoughts = reasoning_of(raw, "the record")
    if thoughts and "reasoning_content" not in messages[-1]:
        messages = [*messages[:-1], messages[-1] | {"reasoning_content": thoughts}]
    untrained = (
        len(messages) if not is_used else len(messages) - 1 if labels.parse_boolean(raw.get("mask_history")) else 0
    )
    messages = [*map(_untrained, messages[:untrained]), *messages[untrained:]]
    return (
        {"kind": "chat", "messages": messages}
        | ({} if label is None else {"label": label})
        | conversation_fields.tools_and_documents(raw)
    )


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
    """A format of raw records."""

    parse: Callable[[dict], dict]  # returns the record, or raises ValueError
    fields: frozenset[str]  # the raw fields that the parser uses; all others go into "meta"


_PREFERENCE_FIELDS = preferences.MARGIN_FIELDS | {"chosen", "rejected"}

FORMATS = {
    "text": Format(text, frozenset({"text"})),
    "alpaca": Format(alpaca, _PREFERENCE_FIELDS | {"instruction", "input", "output", "history"}),
    "qa": Format(qa, frozenset({*QUESTION, *ANSWER, *CONTEXT, *SHORT_QUESTION, *SHORT_ANSWER})),
    "sharegpt": Format(sharegpt, _PREFERENCE_FIELDS | {"conversations", "conversation"}),
    "openai": Format(openai, _PREFERENCE_FIELDS | {"messages"}),
    "colossalchat": Format(colossalchat, _PREFERENCE_FIELDS | {"messages", "context"}),
    "hh_rlhf": Format(hh_rlhf, _PREFERENCE_FIELDS | {"prompt", "completion"}),
    "pku_saferlhf": Format(
        preferences.pku_saferlhf,
        preferences.MARGIN_FIELDS
        | {f"{field}_response_id" for field in ("better", "safer")}
        | {"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"},
    ),
    "trl": Format(trl, _PREFERENCE_FIELDS | {"prompt", "completion", "history"}),
    "lmflow": Format(lmflow, _PREFERENCE_FIELDS | {"type", "text", "input", "output", "messages", "prompt"}),
    "camelid": Format(
        camelid, _PREFERENCE_FIELDS | {"kind", "text", "messages", "label", "documents", *preferences.SAFETY_FIELDS}
    ),
}
