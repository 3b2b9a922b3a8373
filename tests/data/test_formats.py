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
        "qa",
        {"question": "2 + 3 = ?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        chat(user("2 + 3 = ?"), assistant("2 + 3 = <<2+3=5>>5\n#### 5")),
    ),
    (
        "qa",
        {"Question": "Who?", "Answer": "Ann.", "Context": "Ann came.", "system": "Be brief.", "Nr": "7"},
        chat(system("Be brief."), user("Who?", input="Ann came."), assistant("Ann."), meta={"Nr": "7"}),
    ),
    ("qa", {"问题": "谁来了？", "答案": "安来了。"}, chat(user("谁来了？"), assistant("安来了。"))),
    ("qa", {"Questions": "Who?", "Answers": "Ann.", "Nr": 1}, chat(user("Who?"), assistant("Ann."), meta={"Nr": 1})),
    ("qa", {"Q": "Who?", "A": "Ann."}, chat(user("Who?"), assistant("Ann."))),
    (
        "qa",
        {"question": "Who?", "answer": "Ann.", "answers": ["Ann.", "Eve."], "A": "Ann.", "B": "Eve."},
        chat(user("Who?"), assistant("Ann."), meta={"answers": ["Ann.", "Eve."], "A": "Ann.", "B": "Eve."}),
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
        "sharegpt",  # UltraChat, SlimOrca and others, with OpenAI's names for the fields
        {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        chat(user("Q"), assistant("A")),
    ),
    (
        "sharegpt",  # LMSYS-Chat-1M, WildChat
        {"conversation": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "model": "m"},
        chat(user("Q"), assistant("A"), meta={"model": "m"}),
    ),
    (
        "sharegpt",  # in columns
        {"conversations": {"role": ["user", "assistant"], "content": ["Q", "A"]}},
        chat(user("Q"), assistant("A")),
    ),
    ("alpaca", {"instruction": "", "input": "Say hi.", "output": "Hi."}, chat(user("Say hi."), assistant("Hi."))),
    (
        "alpaca",  # a table of text, from pandas
        {"instruction": "2?", "input": float("nan"), "output": "Two.", "history": '[["1?", "One."]]', "system": ""},
        chat(user("1?"), assistant("One."), user("2?"), assistant("Two.")),
    ),
    (
        "openai",  # a command may print nothing
        {
            "messages": [
                {"role": "user", "content": "Make a folder."},
                {"role": "assistant", "content": "mkdir a"},
                {"role": "ipython", "content": ""},
                {"role": "assistant", "content": "Done."},
            ]
        },
        chat(user("Make a folder."), assistant("mkdir a"), tool(""), assistant("Done.")),
    ),
    (
        "colossalchat",
        {"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        chat(user("Q"), assistant("A")),
    ),
    (
        "trl",  # ColossalChat's records for KTO
        {
            "prompt": [{"from": "user", "content": "Q"}],
            "completion": {"from": "assistant", "content": "A"},
            "label": True,
        },
        chat(user("Q"), assistant("A"), label=True),
    ),
    (
        "trl",  # the completion is the whole conversation
        {"prompt": [user("Q")], "completion": [user("Q"), assistant("A")]},
        chat(user("Q"), assistant("A")),
    ),
    (
        "hh_rlhf",
        {"prompt": "\n\nHuman: 1\n\nAssistant: one\n\nHuman: 2\n\nAssistant:"},
        prompt(user("1"), assistant("one"), user("2")),
    ),
    (
        "hh_rlhf",
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "completion": " A", "label": False},
        chat(user("Q"), assistant("A"), label=False),
    ),
    (
        "trl",  # words about a transcript are none
        {"prompt": "Judge:\n\nHuman: Q\n\nAssistant: A", "completion": "Good."},
        chat(user("Judge:\n\nHuman: Q\n\nAssistant: A"), assistant("Good.")),
    ),
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
        "openai",  # LLaMA-Factory with OpenAI's names for the fields
        {"messages": [user("Q")], "chosen": assistant("good"), "rejected": assistant("bad")},
        preference([user("Q")], [assistant("good")], [assistant("bad")]),
    ),
    (
        "trl",  # each side is the whole conversation, whatever `prompt` says
        {
            "prompt": [system("S"), user("Q")],
            "chosen": [system("S"), user("Q"), assistant("good")],
            "rejected": [system("S"), user("Q"), assistant("bad")],
        },
        preference([system("S"), user("Q")], [assistant("good")], [assistant("bad")]),
    ),
    (
        "trl",  # an answer that quotes a transcript
        {"prompt": "Write a dialogue.", "chosen": "\n\nHuman: Hi\n\nAssistant: Hi", "rejected": "No."},
        preference([user("Write a dialogue.")], [assistant("\n\nHuman: Hi\n\nAssistant: Hi")], [assistant("No.")]),
    ),
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


def test_lists_of_messages_go_on_from_openais_messages():
    raw = {"messages": [user("Q")]} | {side: [assistant(side)] for side in ("chosen", "rejected")}
    expected = preference([user("Q")], [assistant("chosen")], [assistant("rejected")])
    assert parse(raw) == parse(raw, "openai") == expected


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


@pytest.mark.parametrize("value", [None, 3, True, "x", [], [3], {}, {"role": 3}, [{"role": "user"}], {"from": []}])
@pytest.mark.parametrize("name,raw,expected", TEXTS_AND_CHATS + PREFERENCES)
def test_a_field_of_the_wrong_type_is_a_value_error_and_nothing_else(name, raw, expected, value):
    for field in raw:
        try:
            record = parse(raw | {field: value}, name)
        except ValueError:
            continue
        assert record["kind"] in ("text", "chat", "prompt", "preference")
