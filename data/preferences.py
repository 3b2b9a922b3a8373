"""Parsers of preference formats: two answers to one prompt, of which one is preferred.

Formats differ in where the prompt ends. So both sides are first read as whole conversations. Their common beginning is
the prompt; the rest of each, at least its last turn, is the answer.
"""

import math
import re

from ..errors import shown
from .conversation_fields import add_system, history_turns, read_tools, system_of, tools_and_documents, with_calls
from .json_values import kind_of
from .labels import is_trained_record
from .messages import (
    ALTERNATING,
    FREE,
    LMFLOW,
    OPENAI,
    Dialect,
    Message,
    check_turns,
    optional_string,
    read_messages,
    string,
)

SCORE_FIELDS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
MARGIN_FIELDS = frozenset({"margin"}.union(*SCORE_FIELDS))
SAFETY_FIELDS = ("safer", "chosen_safe", "rejected_safe")
TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def preference_after(raw: dict, field: str, dialect: Dialect, rule: dict) -> dict:
    """The preference record of a conversation and two continuations, `chosen` and `rejected`.

    LLaMA-Factory's version of ShareGPT, ColossalChat's {"context", "chosen", "rejected"} and camelid's own records have
    this form.

    Args:
      raw: the raw record; `chosen` and `rejected` are messages or lists of messages.
      field: the field with the conversation.
      dialect: the names of fields and roles in a message.
      rule: the roles that may come before each role, ALTERNATING or FREE.
    """
    context = read_messages(raw, field, dialect)
    sides = (follow(context, read_messages(raw, side, dialect)) for side in ("chosen", "rejected"))
    return _preference(raw, *(with_calls(raw, side) for side in sides), rule)


def follow(context: list[Message], turns: list[Message]) -> list[Message]:
    """The conversation of `context` and `turns`; `turns` may begin with a copy of `context`."""
    return turns if turns[: len(context)] == context else context + turns


def alpaca_preference(raw: dict) -> dict:
    """LLaMA-Factory's version of Alpaca: {"instruction", "input"?, "chosen", "rejected", "system"?, "history"?}."""
    context = alpaca_turns(raw)
    sides = ([*context, {"role": "assistant", "content": _answer(raw, side)}] for side in ("chosen", "rejected"))
    return _preference(raw, *sides, ALTERNATING)


def alpaca_turns(raw: dict) -> list[Message]:
    """The turns of an Alpaca record before its answer. If the instruction is empty, `input` is the whole question."""
    more = optional_string(raw, "input")
    if more and "instruction" in raw and not optional_string(raw, "instruction"):
        question = {"role": "user", "content": more}
    else:
        question = {"role": "user", "content": string(raw, "instruction")} | ({"input": more} if more else {})
    return [*history_turns(raw.get("history")), question]


def lmflow_preference(raw: dict) -> dict:
    """LMFlow's paired_conversation: `chosen` and `rejected` are conversations {"messages", "system"?, "tools"?}."""
    sides = [_lmflow_side(raw, side) for side in ("chosen", "rejected")]
    tools = [read_tools(raw[side]) for side in ("chosen", "rejected")]
    if tools[0] != tools[1]:
        raise ValueError("chosen and rejected offer different tools: give both the same")
    return _preference(raw | ({"tools": tools[0]} if tools[0] else {}), *sides, ALTERNATING)


def _lmflow_side(raw: dict, side: str) -> list[Message]:
    conversation = raw.get(side)
    if not isinstance(conversation, dict):
        raise ValueError(f"{side} is {kind_of(conversation)}, not a conversation")
    try:
        messages = read_messages(conversation, "messages", LMFLOW)
        return add_system(system_of(conversation), messages)
    except ValueError as problem:
        raise ValueError(f"{side}: {problem}") from None


def hh_preference(raw: dict) -> dict:
    r"""Anthropic's transcripts, "\n\nHuman: ...\n\nAssistant: ...", in `chosen` and `rejected` (arXiv:2204.05862).

    In the data set rm-static the common beginning of the transcripts is in `prompt`.
    """
    prompt = optional_string(raw, "prompt")
    sides = (transcript(prompt + _answer(raw, side), side) for side in ("chosen", "rejected"))
    return _preference(raw, *sides, ALTERNATING)


def _answer(raw: dict, side: str) -> str:
    """The text of a side. Only a rejected answer may be empty: silence can be the worse answer."""
    return optional_string(raw, side) if side == "rejected" and side in raw else string(raw, side)


def is_transcript(text: str) -> bool:
    """Whether a text begins like Anthropic's transcripts and has an answer."""
    return bool(TRANSCRIPT_TURN.match(text.lstrip())) and "\n\nAssistant:" in text


def transcript(text: str, field: str) -> list[Message]:
    """The turns of a transcript. Raises ValueError if the text is not a transcript; `field` names it in the error."""
    before, *parts = TRANSCRIPT_TURN.split(text)
    if before.strip() or not parts:
        raise ValueError(f"{field} does not begin with '\\n\\nHuman:'")
    roles = ("user" if speaker == "Human" else "assistant" for speaker in parts[::2])
    return [{"role": role, "content": words.strip()} for role, words in zip(roles, parts[1::2], strict=True)]


def trl_preference(raw: dict) -> dict:
    """TRL's {"prompt", "chosen", "rejected"}, as strings or lists of messages.

    If `chosen` and `rejected` are whole conversations, `prompt` may be missing, or repeat the last user turn.
    """
    prompt = [*trl_history(raw), *trl_turns(raw, "prompt", "user")] if "prompt" in raw else []
    chosen, rejected = (trl_turns(raw, side, "assistant") for side in ("chosen", "rejected"))
    if chosen[0]["role"] == "assistant" and not prompt:
        raise ValueError("prompt is missing, and chosen begins with the answer: give the prompt")
    if isinstance(raw.get("prompt"), str) and chosen[0]["role"] != "assistant":
        if prompt[-1] not in chosen:
            raise ValueError("prompt is not among the turns of chosen: give a turn of chosen, or no prompt")
        prompt = []
    return _preference(raw, follow(prompt, chosen), follow(prompt, rejected), FREE)


def trl_history(raw: dict) -> list[Message]:
    """The turns of `history`, a list of [question, answer] pairs before a prompt that is a string."""
    history = raw.get("history")
    if not isinstance(history, list) or not history:
        return []
    if not isinstance(raw.get("prompt"), str):
        raise ValueError("history needs a prompt that is a string: put its turns into the messages of prompt")
    return history_turns(history)


def trl_turns(raw: dict, field: str, role: str) -> list[Message]:
    """The turns in a TRL field: its messages, or one turn of `role` if it is a string."""
    if not isinstance(raw.get(field), str):
        return read_messages(raw, field, OPENAI)
    return [{"role": role, "content": _answer(raw, field)}]


def pku_saferlhf(raw: dict) -> dict:
    """PKU-SafeRLHF: {"prompt", "response_0", "response_1", "better_response_id"} (Ji et al. 2024, arXiv:2406.15513).

    "safer_response_id", "is_response_0_safe" and "is_response_1_safe" are read too if they are there.
    """
    better = _which(raw, "better_response_id")
    worse = f"response_{1 - better}"
    question = {"role": "user", "content": string(raw, "prompt")}
    chosen = {"role": "assistant", "content": string(raw, f"response_{better}")}
    rejected = {"role": "assistant", "content": optional_string(raw, worse) if worse in raw else string(raw, worse)}
    labels = {}
    if "safer_response_id" in raw:
        labels["safer"] = "chosen" if _which(raw, "safer_response_id") == better else "rejected"
    for side, i in (("chosen", better), ("rejected", 1 - better)):
        if f"is_response_{i}_safe" in raw:
            labels[f"{side}_safe"] = _boolean(raw, f"is_response_{i}_safe")
    return _preference(raw, [question, chosen], [question, rejected], ALTERNATING) | labels


def _which(raw: dict, field: str) -> int:
    """The number of a response, 0 or 1, in `field`."""
    if field not in raw:
        raise ValueError(f"{field} is missing")
    if not isinstance(raw[field], int | float) or isinstance(raw[field], bool) or raw[field] not in (0, 1):
        raise ValueError(f"{field} is {shown(raw[field])}, not 0 or 1")
    return int(raw[field])


def camelid_preference(raw: dict) -> dict:
    """A preference record in the form that `formats.parse` returns."""
    labels = {field: _boolean(raw, field) for field in SAFETY_FIELDS[1:] if field in raw}
    if "safer" in raw:
        if raw["safer"] not in ("chosen", "rejected"):
            raise ValueError(f"safer is {shown(raw['safer'])}, not chosen or rejected")
        labels["safer"] = raw["safer"]
    return preference_after(raw, "messages", OPENAI, FREE) | labels


def _boolean(raw: dict, field: str) -> bool:
    if not isinstance(raw[field], bool):
        raise ValueError(f"{field} is {kind_of(raw[field])}, not true or false")
    return raw[field]


def _preference(raw: dict, chosen: list[Message], rejected: list[Message], rule: dict) -> dict:
    """The preference record of two conversations.

    Args:
      raw: the raw record, for its margin, system prompt, tools and documents.
      chosen: the whole conversation with the preferred answer.
      rejected: the whole conversation with the other answer.
      rule: the roles that may come before each role, ALTERNATING or FREE.

    Raises:
      ValueError: a side is malformed or is not to be trained on, or the sides do not differ in an answer.
    """
    if not is_trained_record(raw):
        raise ValueError("the pair is marked as not trained on (weight or train): remove it")
    system = system_of(raw)
    chosen, rejected = add_system(system, chosen), add_system(system, rejected)
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        try:
            check_turns(messages, rule, empty_answer=side == "rejected")
        except ValueError as problem:
            raise ValueError(f"{side}: {problem}") from None
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{side} ends with a user turn, not with an answer")
    untrained = [[message.get("train") is False for message in side] for side in (chosen, rejected)]
    chosen, rejected = _without_switches(chosen), _without_switches(rejected)
    if chosen == rejected:
        raise ValueError("chosen and rejected are equal: remove the pair")
    shared = _shared_turns(chosen, rejected)
    if shared == 0 or chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise ValueError(f"chosen and rejected first differ in turn {shared + 1}, which is not an answer in both")
    if any(any(side[shared:]) for side in untrained):
        raise ValueError("a turn of an answer has train false, but whole answers are compared: remove train")
    answers = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {"kind": "preference", "messages": chosen[:shared], **answers, **_margin(raw), **tools_and_documents(raw)}


def _without_switches(messages: list[Message]) -> list[Message]:
    return [{name: value for name, value in message.items() if name != "train"} for message in messages]


def _shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns the two conversations have in common at their beginning, not counting the last turn of either."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _margin(raw: dict) -> dict[str, float]:
    """{"margin": how much better chosen is}, from `margin` or from the difference of two scores; {} without either."""
    if "margin" in raw:
        return {"margin": _number(raw, "margin")}
    for better, worse in SCORE_FIELDS:
        if better in raw and worse in raw:
            return {"margin": _number(raw, better) - _number(raw, worse)}
    return {}


def _number(raw: dict, field: str) -> float:
    value = raw[field]
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass  # an integer beyond the range of floats
    raise ValueError(f"{field} is not a finite number")
