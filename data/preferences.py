"""Preference formats: two answers to one prompt, the better one named.

Whatever the format says about where the prompt ends, both sides are first read as whole conversations. Their common
beginning is the prompt, and what is left of each, never less than its last turn, is the answer.
"""

import math
import re

from .context import add_system, around, history_turns, read_tools, system_of, with_calls
from .labels import is_used
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
from .values import kind_of, shown

SCORE_FIELDS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
MARGIN_FIELDS = frozenset({"margin"}.union(*SCORE_FIELDS))
SAFETY_FIELDS = ("safer", "chosen_safe", "rejected_safe")
TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def preference_after(raw: dict, field: str, dialect: Dialect, rule: dict) -> dict:
    """A conversation in `field`, and two messages or lists of them that go on from it, `chosen` and `rejected`:
    LLaMA-Factory's cut of ShareGPT, ColossalChat's {"context", "chosen", "rejected"}, and our own form."""
    context = read_messages(raw, field, dialect)
    sides = (follow(context, read_messages(raw, side, dialect)) for side in ("chosen", "rejected"))
    return _preference(raw, *(with_calls(raw, side) for side in sides), rule)


def follow(context: list[Message], turns: list[Message]) -> list[Message]:
    """The whole conversation of `turns` that come after a context, or repeat it first."""
    return turns if turns[: len(context)] == context else context + turns


def alpaca_preference(raw: dict) -> dict:
    """LLaMA-Factory's cut of Alpaca: {"instruction", "input"?, "chosen", "rejected", "system"?, "history"?}."""
    context = alpaca_turns(raw)
    sides = ([*context, {"role": "assistant", "content": _answer(raw, side)}] for side in ("chosen", "rejected"))
    return _preference(raw, *sides, ALTERNATING)


def alpaca_turns(raw: dict) -> list[Message]:
    """What an Alpaca record asks, after its history. Some have all of it in `input`, and an empty instruction."""
    more = optional_string(raw, "input")
    if more and "instruction" in raw and not optional_string(raw, "instruction"):
        question = {"role": "user", "content": more}
    else:
        question = {"role": "user", "content": string(raw, "instruction")} | ({"input": more} if more else {})
    return [*history_turns(raw.get("history")), question]


def lmflow_preference(raw: dict) -> dict:
    """LMFlow's paired_conversation: `chosen` and `rejected` are whole conversations, {"messages", "system"?,
    "tools"?}."""
    sides = [_lmflow_side(raw, side) for side in ("chosen", "rejected")]
    tools = [read_tools(raw[side]) for side in ("chosen", "rejected")]
    if tools[0] != tools[1]:
        raise ValueError("chosen and rejected offer different tools")
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
    """Anthropic's transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ..." in `chosen` and `rejected`; in the cut called
    rm-static their common beginning stands in `prompt`. (Bai et al. 2022, arXiv:2204.05862.)"""
    prompt = optional_string(raw, "prompt")
    sides = (transcript(prompt + _answer(raw, side), side) for side in ("chosen", "rejected"))
    return _preference(raw, *sides, ALTERNATING)


def _answer(raw: dict, side: str) -> str:
    """A side's words; only a rejected answer may be empty: saying nothing is something one can disprefer."""
    return optional_string(raw, side) if side == "rejected" and side in raw else string(raw, side)


def is_transcript(text: str) -> bool:
    """Whether a text begins as Anthropic's transcripts do and has an answer in it."""
    return bool(TRANSCRIPT_TURN.match(text.lstrip())) and "\n\nAssistant:" in text


def transcript(text: str, field: str) -> list[Message]:
    """The turns of a transcript. ValueError where the text in `field` is none."""
    before, *parts = TRANSCRIPT_TURN.split(text)
    if before.strip() or not parts:
        raise ValueError(f"{field} does not begin with '\\n\\nHuman:'")
    roles = ("user" if speaker == "Human" else "assistant" for speaker in parts[::2])
    return [{"role": role, "content": words.strip()} for role, words in zip(roles, parts[1::2], strict=True)]


def trl_preference(raw: dict) -> dict:
    """TRL: {"prompt", "chosen", "rejected"} as strings or lists of messages; `prompt` may be left out, or repeat the
    last user turn, where `chosen` and `rejected` are whole conversations."""
    prompt = [*trl_history(raw), *trl_turns(raw, "prompt", "user")] if "prompt" in raw else []
    chosen, rejected = (trl_turns(raw, side, "assistant") for side in ("chosen", "rejected"))
    if chosen[0]["role"] == "assistant" and not prompt:
        raise ValueError("prompt is missing, and chosen begins with the answer")
    if isinstance(raw.get("prompt"), str) and chosen[0]["role"] != "assistant":
        if prompt[-1] not in chosen:
            raise ValueError("prompt is not among the turns of chosen")
        prompt = []
    return _preference(raw, follow(prompt, chosen), follow(prompt, rejected), FREE)


def trl_history(raw: dict) -> list[Message]:
    """The turns of a list `history` of pairs before a prompt that is a string."""
    history = raw.get("history")
    if not isinstance(history, list) or not history:
        return []
    if not isinstance(raw.get("prompt"), str):
        raise ValueError("history beside a prompt of messages: put its turns among them")
    return history_turns(history)


def trl_turns(raw: dict, field: str, role: str) -> list[Message]:
    """A TRL column: messages as they are, a string as one turn of `role`."""
    if not isinstance(raw.get(field), str):
        return read_messages(raw, field, OPENAI)
    return [{"role": role, "content": _answer(raw, field)}]


def pku_saferlhf(raw: dict) -> dict:
    """PKU-SafeRLHF: {"prompt", "response_0", "response_1", "better_response_id"}, and, where they are known,
    "safer_response_id", "is_response_0_safe" and "is_response_1_safe". (Ji et al. 2024, arXiv:2406.15513.)"""
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
    """The number of a response, 0 or 1."""
    if field not in raw:
        raise ValueError(f"{field} is missing")
    if not isinstance(raw[field], int | float) or isinstance(raw[field], bool) or raw[field] not in (0, 1):
        raise ValueError(f"{field} is {shown(raw[field])}, not 0 or 1")
    return int(raw[field])


def camelid_preference(raw: dict) -> dict:
    """A record as this module writes it."""
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
    if not is_used(raw):
        raise ValueError("the pair is not to be learnt from (weight or train): leave it out")
    system = system_of(raw)
    chosen, rejected = add_system(system, chosen), add_system(system, rejected)
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        try:
            check_turns(messages, rule, empty_answer=side == "rejected")
        except ValueError as problem:
            raise ValueError(f"{side}: {problem}") from None
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{side}: ends with a user turn, not with an answer")
    untrained = [[message.get("train") is False for message in side] for side in (chosen, rejected)]
    chosen, rejected = _without_switches(chosen), _without_switches(rejected)
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    shared = _shared_turns(chosen, rejected)
    if shared == 0 or chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise ValueError(f"chosen and rejected part at turn {shared + 1}, which is not an answer in both")
    if any(any(side[shared:]) for side in untrained):
        raise ValueError("a turn that is compared has train false: all that an answer says is compared")
    answers = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {"kind": "preference", "messages": chosen[:shared], **answers, **_margin(raw), **around(raw)}


def _without_switches(messages: list[Message]) -> list[Message]:
    return [{name: value for name, value in message.items() if name != "train"} for message in messages]


def _shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _margin(raw: dict) -> dict[str, float]:
    """{"margin": by how much chosen is better}, given as it is or as two scores; {} where the record has neither."""
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
        pass  # a whole number that is larger than any float
    raise ValueError(f"{field} is not a finite number")
