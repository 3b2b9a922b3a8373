"""Raw records that no format can read: each is refused in one line that says what is wrong."""

import pytest

from camelid.data.formats import parse


def turns(*pairs, keys=("from", "value")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def openai_turns(*pairs):
    return turns(*pairs, keys=("role", "content"))


QUESTION, GOOD, BAD = (
    {"role": role, "content": words} for role, words in (("user", "Q"), ("assistant", "A"), ("assistant", "B"))
)
PKU = {"prompt": "Q", "response_0": "A", "response_1": "B", "better_response_id": 0}
LABELLED = {"kind": "preference", "messages": [QUESTION], "chosen": [GOOD], "rejected": [BAD]}

MALFORMED = [
    ("auto", {"words": "Q", "answer": "A"}, "no format has the fields words, answer"),
    ("auto", {"question": "Q"}, "answer is missing"),
    ("qa", {"问题": "Q"}, "answer is missing"),
    ("auto", {"Q": "Who?"}, "answer is missing"),
    ("auto", {"question": "Who?", "A": "Ann", "B": "Eve"}, "answer is missing"),  # choices, not an answer
    ("qa", {"question": "Q", "answer": ["A"]}, "answer is a list, not a string"),
    ("qa", {"question": "Q", "answer": "A", "context": 7}, "context is a number, not a string"),
    ("auto", {}, "no format has the fields (none)"),
    ("auto", ["text"], "not a list"),
    ("auto", {"text": None}, "no format has the fields (none)"),
    ("text", {"url": "http://a"}, "text is missing"),
    ("auto", {"text": 3}, "text is a number, not a string"),
    ("auto", {"text": " \n"}, "text is empty"),
    ("auto", {"instruction": "Add.", "input": "1"}, "output is missing"),
    ("auto", {"instruction": "Add.", "output": ""}, "output is empty"),
    ("auto", {"instruction": "Add.", "input": ["1"], "output": "1"}, "input is a list"),
    ("auto", {"instruction": "Add.", "output": "1", "history": [["Q"]]}, "history is not a list of"),
    ("auto", {"conversations": []}, "conversations is empty"),
    ("auto", {"conversations": "Q"}, "conversations is a string, not a list of messages"),
    ("auto", {"conversations": turns(("gpt", "A"), ("human", "Q"))}, "turn 1 (assistant) comes first"),
    (
        "auto",
        {"conversations": turns(("human", "Q"), ("gpt", "A"), ("gpt", "B"))},
        "turn 3 (assistant) follows another assistant turn",
    ),
    (
        "auto",
        {"conversations": turns(("human", "Q"), ("system", "S"))},
        "turn 2 (system) follows the user turn; it may stand only as the first turn",
    ),
    ("auto", {"conversations": turns(("system", "S"))}, "ends with a system turn"),
    (
        "auto",
        {"conversations": turns(("human", "Q"), ("narrator", "N"))},
        "conversations[1] has the unknown role 'narrator'",
    ),
    ("auto", {"conversations": turns(("human", "Q"), ("gpt", ""))}, "turn 2 (assistant) is empty"),
    ("auto", {"conversations": [{"value": "Q"}]}, "conversations[0] has no from"),
    ("auto", {"conversations": ["Q"]}, "conversations[0] is a string, not a message"),
    ("auto", {"conversations": turns(("human", "Q"), ("gpt", 5))}, "conversations[1].value is a number, not a string"),
    ("auto", {"conversations": {"from": ["human"], "value": []}}, "columns of different lengths"),
    ("auto", {"system": "S", "conversations": turns(("system", "T"), ("human", "Q"))}, "only one of them"),
    ("auto", {"messages": openai_turns(("assistant", "A"))}, "turn 1 (assistant) comes first"),
    ("auto", {"messages": openai_turns(("user", None))}, "messages[0].content is null"),
    ("auto", {"messages": openai_turns(("user", [{"type": "image_url"}]))}, "has a part that is not text"),
    ("openai", {"messages": turns(("user", "Q"), keys=("speaker", "content"))}, "messages[0] has no role"),
    ("auto", {"instruction": "", "input": "", "output": "A"}, "instruction is empty"),
    ("auto", {"instruction": "Add.", "output": "1", "history": "[[1]]"}, "history is not a list of"),
    ("trl", {"completion": "A"}, "prompt is missing"),
    ("auto", {"chosen": "good", "rejected": "bad"}, "prompt is missing"),
    ("auto", {"prompt": "Q", "chosen": "same", "rejected": "same"}, "chosen and rejected are equal"),
    ("trl", {"prompt": "Q", "chosen": "good"}, "rejected is missing"),
    ("auto", {"prompt": "Q", "chosen": "good", "rejected": "bad", "margin": "1"}, "margin is not a finite number"),
    ("auto", {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": float("inf")}, "margin is not a finite number"),
    (
        "auto",
        {
            "chosen": openai_turns(("user", "Q"), ("assistant", "A")),
            "rejected": openai_turns(("user", "P"), ("assistant", "A")),
        },
        "first differ in turn 1, which is not an answer in both",
    ),
    (
        "auto",
        {
            "prompt": "other",
            "chosen": openai_turns(("user", "Q"), ("assistant", "A")),
            "rejected": openai_turns(("user", "Q"), ("assistant", "B")),
        },
        "prompt is not among the turns of chosen",
    ),
    (
        "auto",
        {"prompt": "Q", "chosen": openai_turns(("assistant", "A"), ("user", "B")), "rejected": "C"},
        "chosen ends with a user turn",
    ),
    (
        "auto",
        {"chosen": "\n\nHuman: Q\n\nAssistant:", "rejected": "\n\nHuman: Q\n\nAssistant: A"},
        "chosen: turn 2 (assistant) is empty",
    ),
    (
        "hh_rlhf",
        {"chosen": "Well: \n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        "chosen does not begin with",
    ),
    (
        "auto",
        {"context": turns(("human", "Q"), keys=("from", "content")), "chosen": [], "rejected": []},
        "chosen is empty",
    ),
    ("lmflow", {"type": "float_only", "value": 1}, "type is 'float_only', not one of text_only"),
    ("auto", {"type": "text_to_textlist", "instances": []}, "type is 'text_to_textlist', not one of text_only"),
    (
        "lmflow",
        {"type": "paired_conversation", "chosen": "A", "rejected": "B"},
        "chosen is a string, not a conversation",
    ),
    (
        "lmflow",
        {"type": "paired_conversation", "chosen": {"messages": []}, "rejected": {}},
        "chosen: messages is empty",
    ),
    ("auto", {"kind": "chat", "messages": openai_turns(("user", "Q"))}, "the messages are those of a prompt record"),
    ("auto", {"prompt": "Q", "response_0": "A", "response_1": "B"}, "better_response_id is missing"),
    ("auto", PKU | {"better_response_id": 2}, "better_response_id is 2, not 0 or 1"),
    ("auto", PKU | {"safer_response_id": True}, "safer_response_id is True, not 0 or 1"),
    ("auto", PKU | {"is_response_1_safe": 1}, "is_response_1_safe is a number, not true or false"),
    ("auto", PKU | {"response_0": ""}, "response_0 is empty"),
    ("auto", LABELLED | {"safer": "both"}, "safer is 'both', not chosen or rejected"),
    ("auto", LABELLED | {"chosen_safe": "yes"}, "chosen_safe is a string, not true or false"),
]


@pytest.mark.parametrize("format,raw,fault", MALFORMED)
def test_a_malformed_record_is_refused_with_what_is_wrong(format, raw, fault):
    with pytest.raises(ValueError) as problem:
        parse(raw, format)
    assert fault in str(problem.value)
    assert "\n" not in str(problem.value)
