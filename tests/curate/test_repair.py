"""Raw conversations of any export become conversations in order; what data/ reads already stays as it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.curate.conversations.repair import Conversation, in_order, with_turns
from camelid.curate.rows import Rejected, Row
from camelid.data.formats import parse, unfold
from camelid.tests.data.test_formats import PREFERENCES, TEXTS_AND_CHATS

STEP = Conversation()


def row(record):
    return Row("0123456789abcdef0123", record, "chats", "chats.json, record 1")


def sharegpt(*turns, **fields):
    return row({"conversations": [{"from": role, "value": text} for role, text in turns], **fields})


def said(result):
    """Roles and texts of a row's messages, as one string."""
    return " ".join(f"{message['role'][0]}:{message['content']}" for message in result.record["messages"])


def pairs(messages):
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize("raw, record", [(raw, record) for _, raw, record in TEXTS_AND_CHATS + PREFERENCES])
def test_what_data_reads_stays_as_it_is(raw, record):
    for each in unfold(raw):
        expected = parse(each)
        found = Conversation(prompts=True)(row(each))
        assert found.record == expected and not found.columns
        if expected["kind"] != "prompt":
            assert STEP(row(each)) == found
    assert record


def test_prompts_are_cut_behind_their_last_answer_unless_wanted():
    raw = sharegpt(("human", "q"), ("gpt", "a"), ("human", "r"), id=7)
    assert said(STEP(raw)) == "u:q a:a" and STEP(raw).columns == {"turns_trailing": 1}
    assert STEP(raw).record["kind"] == "chat" and STEP(raw).record["meta"] == {"id": 7}
    assert said(Conversation(prompts=True)(raw)) == "u:q a:a u:r"


@pytest.mark.parametrize(
    "turns, expected, columns",
    [
        ("g:hi h:q g:a", "u:q a:a", {"turns_leading": 1}),
        ("g:hi g:ho h:q g:a", "u:q a:a", {"turns_merged": 1, "turns_leading": 1}),
        ("h:q h: g:a", "u:q a:a", {"turns_empty": 1}),
        ("h:q h:q g:a", "u:q a:a", {"turns_repeated": 1}),
        ("h:q g:a g:a h:r g:b", "u:q a:a u:r a:b", {"turns_repeated": 1}),
        ("h:q h:r g:a g:b", "u:q\n\nr a:a\n\nb", {"turns_merged": 2}),
        ("h:q g: h:r g:b", "u:q\n\nr a:b", {"turns_empty": 1, "turns_merged": 1}),
        ("s:s g:hi h:q g:a h:x", "s:s u:q a:a", {"turns_leading": 1, "turns_trailing": 1}),
        ("s: s:s s:s h:q g:a", "s:s u:q a:a", {"turns_repeated": 1}),
        ("h:q g:a g:b h:r h:x", "u:q a:a\n\nb", {"turns_merged": 2, "turns_trailing": 1}),
    ],
)
def test_each_repair_is_made_and_counted(turns, expected, columns):
    roles = {"h": "human", "g": "gpt", "s": "system"}
    found = STEP(sharegpt(*[(roles[turn[0]], turn[2:]) for turn in turns.split(" ")]))
    assert said(found) == expected
    assert found.columns == columns
    assert parse(dict(found.record)) == found.record  # data/ reads the result


@pytest.mark.parametrize("name", ["GPT", "bing", "Bard", "chatgpt", "ChatGPT:", " Assistant ", "model", "助手："])
def test_roles_of_all_exports_are_known(name):
    assert said(STEP(sharegpt(("Human", "q"), (name, "a")))) == "u:q a:a"


@pytest.mark.parametrize(
    "record, reason, detail",
    [
        ({"conversations": []}, "no_turns", "no turn has text"),
        ({"conversations": [{"from": "human", "value": " "}]}, "no_turns", ""),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "no_question", ""),
        ({"conversations": [{"from": "human", "value": "q"}]}, "no_answer", ""),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": None}]}, "no_answer", ""),
        (
            {"conversations": [{"from": "narrator", "value": "q"}]},
            "unknown_role",
            "conversations[0] has the role 'narr",
        ),
        ({"conversations": [{"value": "q"}]}, "unknown_role", "conversations[0] has no role"),
        ({"conversations": ["q", "a"]}, "malformed", "conversations[0] is a string, not a turn"),
        ({"conversations": 3}, "malformed", "conversations is a number"),
        ({"conversations": [{"from": "human", "value": 5}]}, "malformed", "conversations[0].content is a number"),
        ({"title": "x"}, "malformed", "no format has the fields title"),
        ({"messages": [{"role": "user", "content": ""}], "chosen": "a", "rejected": "b"}, "malformed", ""),
        ({"prompt": "Q"}, "no_answer", ""),
    ],
)
def test_refused_records_have_a_reason_and_what_was_found(record, reason, detail):
    found = STEP(row(record))
    assert isinstance(found, Rejected) and found.reason == reason and detail in found.detail
    assert found.reason in STEP.reasons


def test_a_system_turn_in_the_middle_is_refused_by_its_place():
    found = STEP(sharegpt(("human", "q"), ("gpt", "a"), ("system", "s"), ("human", "r"), ("gpt", "b")))
    assert found.reason == "malformed" and "system" in found.detail


def test_tools_and_their_calls_survive_a_repair():
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    found = STEP(
        sharegpt(
            ("gpt", "Hi!"),
            ("system", ""),
            ("human", "Time?"),
            ("function_call", '{"name": "clock", "arguments": {}}'),
            ("observation", "12:00"),
            ("gpt", "Noon."),
            ("human", "Thanks"),
            tools=tools,
        )
    )
    assert found.record["tools"] == tools
    assert found.record["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "clock", "arguments": {}}}
    ]
    assert [message["role"] for message in found.record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert found.columns == {"turns_leading": 1, "turns_trailing": 1}


@pytest.mark.parametrize(
    "record",
    [
        {"items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"author": "me", "text": "q"}, {"author": "bot", "text": "a"}]},
        {"conversations": '[{"from": "human", "value": "q"}, {"from": "AI", "value": "a"}]'},
        {"conversations": {"from": ["gpt", "human", "gpt"], "value": ["hi", "q", "a"]}},
        {"type": "conversation", "messages": [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]},
    ],
)
def test_turns_are_found_under_the_names_of_other_exports(record):
    assert said(STEP(row(record))) == "u:q a:a"


def test_turns_that_differ_in_training_are_not_joined():
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "train": False},
        {"role": "assistant", "content": "b"},
    ]
    assert in_order(messages) == (messages, {})


def test_a_row_is_not_changed_in_place():
    raw = sharegpt(("gpt", "hi"), ("human", "q"), ("human", "r"), ("gpt", "a"))
    before = repr(raw)
    STEP(raw)
    assert repr(raw) == before


def test_only_turns_that_lost_their_text_are_left_out():
    record = parse({"prompt": "Q", "chosen": "good", "rejected": ""})
    turns = [*record["messages"], {"role": "assistant", "content": "better"}, *record["rejected"]]
    found = with_turns(row(record), turns)
    assert pairs(found.record["chosen"] + found.record["rejected"]) == [("assistant", "better"), ("assistant", "")]
    turns[1] = {"role": "assistant", "content": " "}
    assert with_turns(row(record), turns).reason == "nothing_left"


VALUE = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4) | st.lists(st.none(), max_size=2)
)
ROLE = st.sampled_from(["human", "gpt", "system", "tool", "user", "function_call", "narrator"])
TURN = st.dictionaries(
    st.sampled_from(["from", "role", "value", "content", "tool_calls", "input", "weight"]), VALUE | ROLE, max_size=4
)
SPOKEN = st.fixed_dictionaries({"from": ROLE, "value": st.sampled_from(["", " ", "a", "b", "\ud800"])})
FIELDS = {
    "conversations": st.lists(SPOKEN, max_size=6) | st.lists(TURN, max_size=4) | VALUE,
    "messages": st.lists(TURN, max_size=4),
    **dict.fromkeys(("system", "tools", "chosen", "rejected", "text", "label", "type"), VALUE),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_every_record_is_parsed_or_has_a_reason(record):
    found = STEP(row(record))
    if isinstance(found, Rejected):
        assert found.reason in STEP.reasons
    else:
        assert found.record["kind"] in ("text", "chat", "preference")
        assert parse(dict(found.record)) == found.record


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["human", "gpt"]), st.sampled_from(["", " ", "a", "b"])), max_size=8))
def test_no_turn_is_lost_but_those_that_are_counted(turns):
    found = STEP(sharegpt(*turns))
    if isinstance(found, Rejected):
        assert "hg" not in "".join(role[0] for role, text in turns if text.strip())
    else:
        assert len(found.record["messages"]) + sum(found.columns.values()) == len(turns)
