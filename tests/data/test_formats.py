"""Every format: raw records as their authors publish them, and the records expected, written by hand."""

import copy
import json

import pytest

from camelid.data.formats import FORMATS, detect, parse, unfold


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def tool(content):
    return {"role": "tool", "content": content}


def chat(*messages, **more):
    return {"kind": "chat", "messages": list(messages), **more}


def prompt(*messages, **more):
    return {"kind": "prompt", "messages": list(messages), **more}


def preference(messages, chosen, rejected, **more):
    return {"kind": "preference", "messages": messages, "chosen": chosen, "rejected": rejected, **more}


TEXTS_AND_CHATS = [
    ("text", {"text": "A llama.\n"}, {"kind": "text", "text": "A llama.\n"}),
    (
        "text",
        {"text": "A llama.", "url": "http://a", "meta": {"set": "Pile-CC"}},
        {"kind": "text", "text": "A llama.", "meta": {"url": "http://a", "set": "Pile-CC"}},
    ),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 2", "output": "3", "id": 7},
        chat(user("Add.", input="1 2"), assistant("3"), meta={"id": 7}),
    ),
    ("alpaca", {"instruction": "Say hi.", "input": "", "output": "Hi."}, chat(user("Say hi."), assistant("Hi."))),
    ("alpaca", {"instruction": "Say hi.", "input": None, "output": "Hi."}, chat(user("Say hi."), assistant("Hi."))),
    (
        "alpaca",
        {"instruction": "And 2?", "output": "Two.", "system": "Count.", "history": [["1?", "One."]]},
        chat(system("Count."), user("1?"), assistant("One."), user("And 2?"), assistant("Two.")),
    ),
    (
        "sharegpt",
        {
            "id": "a_0",
            "conversations": [
                {"from": "human", "value": "你好"},
                {"from": "gpt", "value": "你好！"},
                {"from": "user", "value": "Bye"},
                {"from": "chatgpt", "value": "Bye!"},
            ],
        },
        chat(user("你好"), assistant("你好！"), user("Bye"), assistant("Bye!"), meta={"id": "a_0"}),
    ),
    (
        "sharegpt",
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Time?"},
                {"from": "function_call", "value": "clock()"},
                {"from": "observation", "value": "12:00"},
                {"from": "gpt", "value": "Noon."},
            ],
        },
        chat(system("Be brief."), user("Time?"), assistant("clock()"), tool("12:00"), assistant("Noon.")),
    ),
    (
        "sharegpt",  # columns, as TFDS and Parquet store a sequence of objects
        {"conversations": {"from": ["system", "human", "gpt"], "value": ["S", "Q", "A"]}},
        chat(system("S"), user("Q"), assistant("A")),
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}]}, prompt(user("Q"))),
    (
        "openai",
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c"},
            ]
        },
        chat(system("S"), user("ab"), assistant("c")),
    ),
    (
        "openai",  # only a user turn has an input
        {"messages": [user("Q", input="I"), assistant("A") | {"input": "I"}]},
        chat(user("Q", input="I"), assistant("A")),
    ),
    (
        "openai",  # two user turns in a row are allowed here
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        prompt(user("a"), user("b")),
    ),
    (
        "colossalchat",
        {"messages": [{"from": "user", "content": "Q"}, {"from": "assistant", "content": "A"}]},
        chat(user("Q"), assistant("A")),
    ),
    ("colossalchat", {"messages": [{"from": "human", "content": "Q"}]}, prompt(user("Q"))),
    ("trl", {"prompt": "The sky is"}, prompt(user("The sky is"))),
    ("trl", {"prompt": [{"role": "user", "content": "Colour?"}]}, prompt(user("Colour?"))),
    (
        "trl",
        {"prompt": "The sky is", "completion": " blue."},
        chat(user("The sky is"), assistant(" blue.")),
    ),
    (
        "trl",
        {
            "prompt": [{"role": "user", "content": "Colour?"}],
            "completion": [{"role": "assistant", "content": "Blue."}],
        },
        chat(user("Colour?"), assistant("Blue.")),
    ),
    ("lmflow", {"type": "text_only", "text": "T"}, {"kind": "text", "text": "T"}),
    ("lmflow", {"type": "text2text", "input": "Q", "output": "A"}, chat(user("Q"), assistant("A"))),
    (
        "lmflow",
        {
            "type": "conversation",
            "conversation_id": 1,
            "system": "S",
            "tools": [""],
            "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        },
        chat(system("S"), user("Q"), assistant("A"), meta={"conversation_id": 1}),
    ),
]

PREFERENCES = [
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "1"},
                {"from": "gpt", "value": "one"},
                {"from": "human", "value": "2"},
            ],
            "chosen": {"from": "gpt", "value": "two"},
            "rejected": {"from": "gpt", "value": "too"},
        },
        preference([system("S"), user("1"), assistant("one"), user("2")], [assistant("two")], [assistant("too")]),
    ),
    (
        "colossalchat",
        {
            "context": [{"from": "human", "content": "Q"}],
            "chosen": [{"from": "assistant", "content": "good"}],
            "rejected": [{"from": "assistant", "content": "bad"}],
        },
        preference([user("Q")], [assistant("good")], [assistant("bad")]),
    ),
    (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Two\nlines?\n\nAssistant: Yes.\n\nBoth.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Two\nlines?\n\nAssistant: No.",
        },
        preference(
            [user("Hi"), assistant("Hello"), user("Two\nlines?")],
            [assistant("Yes.\n\nBoth.")],
            [assistant("No.")],
        ),
    ),
    (
        "hh_rlhf",  # an answer of nothing stays a turn of its own
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
        preference([user("Hi")], [assistant("Hello")], [assistant("")]),
    ),
    (
        "hh_rlhf",  # rm-static
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " What?"},
        preference([user("Hi")], [assistant("Hello")], [assistant("What?")]),
    ),
    (
        "pku_saferlhf",
        {
            "prompt": "Q",
            "response_0": "bad",
            "response_1": "good",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 1,
            "safer_response_id": 0,
            "response_0_severity_level": 2,
        },
        preference([user("Q")], [assistant("good")], [assistant("bad")], safer="rejected", chosen_safe=False)
        | {"rejected_safe": True, "meta": {"response_0_severity_level": 2}},
    ),
    (
        "pku_saferlhf",  # without labels of safety; the worse answer says nothing
        {"prompt": "Q", "response_0": "good", "response_1": "", "better_response_id": 0},
        preference([user("Q")], [assistant("good")], [assistant("")]),
    ),
    (
        "trl",
        {"prompt": "Q", "chosen": "good", "rejected": "bad", "margin": 2},
        preference([user("Q")], [assistant("good")], [assistant("bad")], margin=2.0),
    ),
    (
        "trl",
        {
            "prompt": [{"role": "user", "content": "Q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
            "chosen_score": 4.5,
            "rejected_score": 1,
        },
        preference([user("Q")], [assistant("good")], [assistant("bad")], margin=3.5),
    ),
    (
        "trl",  # the prompt is what both sides begin with; only the first answers differ
        {
            "chosen": [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": "good"},
                {"role": "user", "content": "more"},
                {"role": "assistant", "content": "same"},
            ],
            "rejected": [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": "bad"},
                {"role": "user", "content": "more"},
                {"role": "assistant", "content": "same"},
            ],
        },
        preference(
            [user("Q")],
            [assistant("good"), user("more"), assistant("same")],
            [assistant("bad"), user("more"), assistant("same")],
        ),
    ),
    (
        "trl",  # UltraFeedback: the prompt stands twice
        {
            "prompt": "Q",
            "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
            "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "bad"}],
            "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
            "score_chosen": 8.0,
            "score_rejected": 6.5,
        },
        preference([user("Q")], [assistant("good")], [assistant("bad")], margin=1.5)
        | {"meta": {"messages": [user("Q"), assistant("good")]}},
    ),
    (
        "lmflow",
        {
            "type": "paired_conversation",
            "chosen": {
                "conversation_id": 3,
                "system": "S",
                "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
            },
            "rejected": {
                "conversation_id": 3,
                "system": "S",
                "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "bad"}],
            },
        },
        preference([system("S"), user("Q")], [assistant("good")], [assistant("bad")]),
    ),
    (
        "lmflow",
        {"type": "paired_text_to_text", "prompt": "Q", "chosen": "good", "rejected": "bad", "margin": 0.6},
        preference([user("Q")], [assistant("good")], [assistant("bad")], margin=0.6),
    ),
]


@pytest.mark.parametrize("name,raw,expected", TEXTS_AND_CHATS + PREFERENCES)
def test_a_record_is_recognised_by_its_fields_and_read_as_written_by_hand(name, raw, expected):
    before = copy.deepcopy(raw)
    assert detect(raw) == name
    assert parse(raw) == parse(raw, name) == expected
    assert raw == before, "parsing leaves the raw record alone"


@pytest.mark.parametrize("name,raw,expected", TEXTS_AND_CHATS + PREFERENCES)
def test_a_record_written_to_json_reads_back_as_itself(name, raw, expected):
    written = json.loads(json.dumps(expected))
    assert detect(written) == "camelid"
    assert parse(written) == expected


def test_every_format_has_an_example_here():
    assert {name for name, _, _ in TEXTS_AND_CHATS + PREFERENCES} | {"camelid"} == set(FORMATS)


def test_instances_of_self_instruct_and_lmflow_become_records_of_their_own():
    seed = {
        "id": "s_1",
        "instruction": "Add.",
        "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "?"}],
    }
    assert [parse(raw) for raw in unfold(seed)] == [
        chat(user("Add.", input="1 2"), assistant("3"), meta={"id": "s_1"}),
        chat(user("Add."), assistant("?"), meta={"id": "s_1"}),
    ]
    lmflow = {"type": "text_only", "instances": [{"text": "a"}, {"text": "b"}]}
    assert [parse(raw)["text"] for raw in unfold(lmflow)] == ["a", "b"]
    assert unfold({"text": "a"}) == [{"text": "a"}]


def turns(*pairs, keys=("from", "value")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


def openai_turns(*pairs):
    return turns(*pairs, keys=("role", "content"))


PKU = {"prompt": "Q", "response_0": "A", "response_1": "B", "better_response_id": 0}
LABELLED = preference([user("Q")], [assistant("A")], [assistant("B")])

MALFORMED = [
    ("auto", {"question": "Q", "answer": "A"}, "no format has the fields question, answer"),
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
        "turn 2 (system) follows the user turn",
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
    ("openai", {"messages": turns(("user", "Q"), keys=("from", "content"))}, "messages[0] has no role"),
    ("trl", {"completion": "A"}, "prompt is missing"),
    ("auto", {"chosen": "good", "rejected": "bad"}, "prompt is missing"),
    ("auto", {"prompt": "Q", "chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
    ("trl", {"prompt": "Q", "chosen": "good"}, "rejected is missing"),
    ("auto", {"prompt": "Q", "chosen": "good", "rejected": "bad", "margin": "1"}, "margin is not a finite number"),
    ("auto", {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin is not a finite number"),
    (
        "auto",
        {
            "chosen": openai_turns(("user", "Q"), ("assistant", "A")),
            "rejected": openai_turns(("user", "P"), ("assistant", "A")),
        },
        "part at turn 1, which is not an answer in both",
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
        "chosen: ends with a user turn",
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
    ("auto", {"kind": "chat", "messages": openai_turns(("user", "Q"))}, "the messages are a prompt"),
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


@pytest.mark.parametrize("value", [None, 3, True, "x", [], [3], {}, {"role": 3}, [{"role": "user"}], {"from": []}])
@pytest.mark.parametrize("name,raw,expected", TEXTS_AND_CHATS + PREFERENCES)
def test_a_field_of_the_wrong_type_is_a_value_error_and_nothing_else(name, raw, expected, value):
    for field in raw:
        try:
            record = parse(raw | {field: value}, name)
        except ValueError:
            continue
        assert record["kind"] in ("text", "chat", "prompt", "preference")
