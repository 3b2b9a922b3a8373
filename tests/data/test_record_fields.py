"""Fields that change what an answer means: each is used, or refused; what nobody needs stops nothing."""

import json
from decimal import Decimal

import numpy as np
import pytest

from camelid.data import sources
from camelid.data.formats import parse
from camelid.data.pairs import encode_pair
from camelid.data.prompts import prompt_of
from camelid.data.templates import ChatTemplate, load_template
from camelid.data.text_encoder import encode_record
from camelid.data.tfds_builder import build_dataset
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.errors import UserError

CONTROL = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    text = ["system user assistant tool question answer good bad one two three " * 5]
    return train_sentencepiece(text, vocab_size=300, output_dir=tmp_path_factory.mktemp("t"), special_tokens=CONTROL)


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def trained(record, tokenizer, template="chatml"):
    """The words that the record trains, turn by turn, without the ends of turns."""
    tokens, mask = encode_record(record, tokenizer, load_template(template))
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    return [tokenizer.decode(tokens[a : b - 1].tolist()).strip() for a, b in edges]


# Labels --------------------------------------------------------------------------------------------------------------

ANSWERS = {
    "alpaca": {"instruction": "question", "output": "answer"},
    "trl": {"prompt": "question", "completion": "answer"},
    "sharegpt": {"conversations": [{"from": "human", "value": "question"}, {"from": "gpt", "value": "answer"}]},
    "openai": {"messages": [user("question"), assistant("answer")]},
    "colossalchat": {"messages": [{"from": "user", "content": "question"}, {"from": "assistant", "content": "answer"}]},
    "lmflow": {"type": "text2text", "input": "question", "output": "answer"},
}
BAD = [
    *({"label": value} for value in (False, 0, 0.0, "false", "bad")),
    *({"kto_tag": value} for value in (False, 0)),
    *({"score": value} for value in (0, -1, -0.5, False, "0", "-1.5", "bad")),
    {"rating": 0},
]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("field", BAD, ids=str)
def test_an_answer_that_its_record_is_bad_score_is_not_trained_on(name, field, tokenizer):
    record = parse(ANSWERS[name] | field)
    assert record["label"] is False
    with pytest.raises(UserError, match="the answer is labelled bad"):
        encode_record(record, tokenizer, load_template("chatml"))
    assert prompt_of(record) == ([user("question")], None)  # nor is it a reference


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    "field", [{"label": True}, {"kto_tag": 1}, {"score": 4.5}, {"rating": 1}, {"score": "high"}, {}], ids=str
)
def test_an_answer_that_is_called_good_or_only_scored_is_trained_on(name, field, tokenizer):
    record = parse(ANSWERS[name] | field)
    assert record.get("label", True) is True
    assert trained(record, tokenizer) == ["answer"]


def test_a_label_that_is_a_class_or_a_reference_answer_is_nothing_but_a_field():
    for value in ("sports", 7, [0, 1], {"a": 1}, "42"):
        assert parse(ANSWERS["alpaca"] | {"label": value})["meta"] == {"label": value}
    assert parse({"prompt": "question", "label": "42"}) == {
        "kind": "prompt",
        "messages": [user("question")],
        "meta": {"label": "42"},
    }
    assert parse({"text": "a film", "label": 0})["meta"] == {"label": 0}


@pytest.mark.parametrize(
    "raw,fault",
    [
        (ANSWERS["trl"] | {"label": "42"}, "label is '42', not true or false"),
        (ANSWERS["alpaca"] | {"kto_tag": 2}, "kto_tag is 2, not true or false"),
        (ANSWERS["alpaca"] | {"label": True, "score": -1}, "label and score disagree"),
        (ANSWERS["alpaca"] | {"output": "", "label": True}, "output is empty"),
        (
            {"prompt": "a", "completion": [assistant("b"), user("c"), assistant("d")], "label": True},
            "holds a user turn",
        ),
        ({"messages": [user("a"), assistant("b", label=False)]}, "set train to false to leave the turn out"),
        ({"messages": [user("a"), assistant("b", score=-1)]}, "set train to false to leave the turn out"),
        (ANSWERS["sharegpt"] | {"images": ["a.png"]}, "images is not empty"),
        (ANSWERS["sharegpt"] | {"image": "a.png"}, "image is not empty"),
        (ANSWERS["openai"] | {"audio": {"path": "a.wav"}}, "audio is not empty"),
        (ANSWERS["trl"] | {"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs is not supported"),
    ],
)
def test_what_labels_cannot_mean_is_refused(raw, fault):
    with pytest.raises(ValueError, match=fault):
        parse(raw)


# System prompts ------------------------------------------------------------------------------------------------------

SYSTEMS = {
    **ANSWERS,
    "dpo": {"prompt": "question", "chosen": "answer", "rejected": "bad"},
    "dpo_messages": {"chosen": [user("question"), assistant("a")], "rejected": [user("question"), assistant("b")]},
    "alpaca_dpo": {"instruction": "question", "chosen": "answer", "rejected": "bad"},
    "prompt": {"prompt": "question"},
    "hh": {"chosen": "\n\nHuman: question\n\nAssistant: a", "rejected": "\n\nHuman: question\n\nAssistant: b"},
    "pku": {"prompt": "question", "response_0": "a", "response_1": "b", "better_response_id": 0},
    "colossalchat_dpo": {
        "context": [{"from": "user", "content": "question"}],
        "chosen": [{"from": "assistant", "content": "a"}],
        "rejected": [{"from": "assistant", "content": "b"}],
    },
    "lmflow_pair": {"type": "paired_text_to_text", "prompt": "question", "chosen": "a", "rejected": "b"},
    "lmflow_conversation": {"type": "conversation", "messages": [user("question"), assistant("answer")]},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_prompt_in_a_field_of_its_own_begins_the_conversation(name):
    for field in ("system", "system_prompt", "system_message"):
        with_it, without = parse(SYSTEMS[name] | {field: "Be brief."}), parse(SYSTEMS[name])
        assert with_it["messages"] == [system("Be brief."), *without["messages"]]
        assert "meta" not in with_it
        for empty in (" \n", [], {}, False, float("nan")):
            assert {**parse(SYSTEMS[name] | {field: empty})} == without
        with pytest.raises(ValueError, match=f"{field} is a list, not a string"):
            parse(SYSTEMS[name] | {field: ["Be brief."]})


def test_an_empty_system_turn_is_no_system_turn():
    for empty in ("", " \n", None):
        assert parse({"messages": [system(empty), user("a"), assistant("b")]}) == parse(
            {"messages": [user("a"), assistant("b")]}
        )
    assert parse({"messages": [system(""), user("a")], "system": "S"})["messages"] == [system("S"), user("a")]
    assert parse({"messages": [system("S"), user("a")], "system": "S"})["messages"] == [system("S"), user("a")]


# Switches of turns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["train", "training", "trainable", "loss", "loss_mask", "weight"])
@pytest.mark.parametrize("on,off", [(True, False), (1, 0), (1.0, 0.0)])
def test_each_turn_of_the_assistant_is_trained_as_its_switch_says(field, on, off, tokenizer):
    turns = [user("one"), assistant("two", **{field: off}), user("three"), assistant("good", **{field: on})]
    record = parse({"messages": turns})
    assert [m.get("train") for m in record["messages"]] == [None, False, None, None]
    assert trained(record, tokenizer) == ["good"]
    last_off = parse({"messages": [*turns[:3], assistant("good", **{field: off})]})
    assert trained(last_off, tokenizer) == []
    assert trained(parse({"messages": [user("one", **{field: off}), assistant("two")]}), tokenizer) == ["two"]
    whole = encode_record(
        parse({"messages": [user("one"), assistant("two"), user("three"), assistant("good")]}),
        tokenizer,
        load_template("chatml"),
    )
    assert encode_record(record, tokenizer, load_template("chatml")).tokens.tolist() == whole.tokens.tolist()


@pytest.mark.parametrize(
    "field",
    [{"weight": 0}, {"weight": 0.0}, {"weight": "0.0"}, {"weight": "0"}, {"train": False}, {"training": "false"}],
    ids=str,
)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_record_that_says_so_is_not_learnt_from(name, field, tokenizer):
    assert trained(parse(ANSWERS[name] | field), tokenizer) == []
    for label in ({"label": True}, {"score": 0}):
        with pytest.raises(ValueError, match="the record has a label, and a weight or train of 0"):
            parse(ANSWERS[name] | field | label)


@pytest.mark.parametrize("field", [{"weight": 1}, {"weight": "70 kg"}, {"train": True}, {"loss": 0}], ids=str)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_record_is_learnt_from_whatever_else_its_fields_say(name, field, tokenizer):
    assert trained(parse(ANSWERS[name] | field), tokenizer) == ["answer"]


@pytest.mark.parametrize(
    "weight", [0.5, 2, -1, Decimal(10**5000), "0.5", "nan"], ids=["half", "two", "minus", "huge", "spelled", "none"]
)
def test_a_weight_of_a_record_that_cannot_be_followed_is_refused(weight):
    for raw in (ANSWERS["openai"], SYSTEMS["dpo"]):
        with pytest.raises(ValueError, match="give 1 to train on the record, or 0"):
            parse(raw | {"weight": weight})
    with pytest.raises(ValueError, match="the pair is marked as not trained on"):
        parse(SYSTEMS["dpo"] | {"weight": 0})
    assert parse({"text": "a", "weight": weight})["text"] == "a"


def test_a_history_that_is_masked_is_not_trained_on(tokenizer):
    raw = {"instruction": "three", "output": "good", "history": [["one", "two"]]}
    assert trained(parse(raw), tokenizer) == ["two", "good"]
    assert trained(parse(raw | {"mask_history": True}), tokenizer) == ["good"]


@pytest.mark.parametrize(
    "turn,fault",
    [
        (assistant("b", weight=0.5), "weight 0.5: give 1 to train on the turn, or 0"),
        (assistant("b", weight="0.5"), "weight '0.5': give 1 to train on the turn, or 0"),
        (assistant("b", loss=0.37), "loss 0.37: give 1 to train on the turn, or 0"),
        (assistant("b", train="some"), "train 'some': give 1 to train on the turn, or 0"),
        (assistant("b", train=True, weight=0), "train and weight disagree"),
        (assistant("b", train_detail=[{"begin_offset": 0}]), "train_detail, which is not supported"),
        (user("b", train=True), "only the assistant's turns are trained"),
    ],
)
def test_switches_that_cannot_be_followed_are_refused(turn, fault):
    with pytest.raises(ValueError, match=fault):
        parse({"messages": [user("a"), turn]})


def test_a_weight_of_one_may_stand_on_every_turn_as_openai_writes_it(tokenizer):
    record = parse({"messages": [{**system("S"), "weight": 1}, user("a", weight=1), assistant("two", weight=1)]})
    assert trained(record, tokenizer) == ["two"]


def test_turns_of_pairs_are_compared_whatever_their_context_trains():
    context = [user("one"), assistant("two", weight=0), user("three")]
    raw = {"prompt": context, "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    assert parse(raw)["messages"] == [user("one"), assistant("two"), user("three")]
    with pytest.raises(ValueError, match="but whole answers are compared"):
        parse(raw | {"chosen": [assistant("good", train=False)]})


# Tools, thoughts -----------------------------------------------------------------------------------------------------

CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
CALLING = [
    user("Time?"),
    assistant(None, tool_calls=[CALL | {"id": "c1"}], reasoning_content="two"),
    {"role": "tool", "content": "12:00", "tool_call_id": "c1", "name": "clock"},
    assistant("Noon."),
]
TOOLED = ChatTemplate(
    "tooled",
    "{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)


@pytest.mark.parametrize("tools", [[CLOCK], json.dumps([CLOCK]), [json.dumps(CLOCK)]])
def test_tools_calls_and_thoughts_come_to_the_template(tools, tokenizer):
    record = parse({"messages": CALLING, "tools": tools})
    assert record["tools"] == [CLOCK]
    assert record["messages"][1] == assistant("", tool_calls=[{"id": "c1"} | CALL], reasoning_content="two")
    assert record["messages"][2] == CALLING[2]
    text = tokenizer.decode(encode_record(record, tokenizer, TOOLED).tokens.tolist())
    assert "[clock]" in text and "(two)" in text and 'clock {"zone": "UTC"}' in text.replace("\u2581", " ")


def test_functions_beside_other_tools_are_refused():
    said = {"messages": [user("a"), assistant("b")], "tools": [CLOCK]}
    assert parse(said | {"functions": [CLOCK["function"]]})["tools"] == [CLOCK]
    with pytest.raises(ValueError, match="tools and functions differ"):
        parse(said | {"functions": [{"name": "other"}]})


def test_answers_before_a_last_word_of_the_user_are_trained(tokenizer):
    record = parse({"messages": [user("one"), assistant("two"), user("three")]})
    assert record["kind"] == "prompt" and trained(record, tokenizer) == ["two"]


def test_a_template_that_writes_no_tools_refuses_a_record_that_needs_them(tokenizer):
    for raw, field in (
        ({"messages": [user("a"), assistant("b")], "tools": [CLOCK]}, "tools"),
        ({"messages": [user("a"), assistant("b", reasoning_content="c")]}, "reasoning_content"),
        ({"messages": [user("a"), assistant("", tool_calls=[CALL])]}, "tool_calls"),
    ):
        with pytest.raises(UserError, match=f"has {field}, but chat template chatml does not read"):
            encode_record(parse(raw), tokenizer, load_template("chatml"))
    pair = parse({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [CLOCK]})
    with pytest.raises(UserError, match="the record has tools, but chat template chatml does not read them"):
        encode_pair(pair, tokenizer, load_template("chatml"))


@pytest.mark.parametrize(
    "arguments",
    ["c.function.arguments | tojson", "c.function.arguments", "'' + c.function.arguments", "c.function | tojson"],
)
@pytest.mark.parametrize("given", [{"zone": "香港"}, '{"zone": "香港"}'])
def test_arguments_of_calls_are_json_in_every_template_however_a_record_spells_them(tokenizer, arguments, given):
    source = TOOLED.source.replace("c.function.arguments | tojson", arguments)
    template = ChatTemplate("calls", source.replace("{{ c.function.name }} ", ""))
    function = {"name": "clock", "arguments": given}
    record = parse({"messages": [user("Time?"), assistant("", tool_calls=[{"function": function}])], "tools": [CLOCK]})
    expected = '{"zone": "香港"}'
    if arguments.endswith("function | tojson"):
        expected = f'{{"name": "clock", "arguments": {expected}}}'
    tokens, mask = encode_record(record, tokenizer, template)
    assert tokenizer.decode(tokens[mask].tolist()).strip() == expected


def test_the_spellings_of_calls_are_read_alike():
    legacy = assistant(None, function_call={"name": "clock", "arguments": '{"zone": "UTC"}'})
    assert parse({"messages": [user("Time?"), legacy]})["messages"][1]["tool_calls"] == [CALL]
    bare = assistant("", tool_calls=[CALL["function"]])
    assert parse({"messages": [user("Time?"), bare]})["messages"][1]["tool_calls"] == [CALL]
    spelled = [
        {"from": "human", "value": "Time?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "Noon."},
    ]
    with_tools = parse({"conversations": spelled, "tools": json.dumps([CLOCK])})
    assert with_tools["messages"][1] == assistant("", tool_calls=[CALL])
    lmflow = {"type": "conversation", "messages": [user("Time?"), {"role": "function", "content": spelled[1]["value"]}]}
    assert parse(lmflow | {"tools": [json.dumps(CLOCK)]})["messages"][1] == assistant("", tool_calls=[CALL])
    words = parse({"conversations": spelled, "tools": ""})  # without tools a turn's words stay words
    assert words["messages"][1] == assistant(spelled[1]["value"]) and "tools" not in words
    functions = parse({"messages": [user("a"), assistant("b")], "functions": [CLOCK["function"]]})
    assert functions["tools"] == [CLOCK] and "meta" not in functions


@pytest.mark.parametrize(
    "raw,fault",
    [
        ({"tools": "one tool"}, "tools is 'one tool', not a list of schemas"),
        ({"tools": [3]}, "tools[0] is 3, not an object with the schema"),
        (
            {"messages": [user("a"), assistant("", tool_calls=[{}])]},
            "messages[1] has a tool call without a function name",
        ),
        ({"messages": [user("a"), assistant("", tool_calls="clock")]}, "tool_calls that are 'clock', not a list"),
        ({"messages": [user("a", tool_calls=[CALL])]}, "messages[0] calls tools, which only the assistant can"),
        ({"messages": [user("a"), assistant("b", thinking="x", reasoning="y")]}, "thinking and reasoning differ"),
    ],
)
def test_malformed_tools_and_calls_are_refused(raw, fault):
    with pytest.raises(ValueError) as problem:
        parse({"messages": [user("a"), assistant("b")]} | raw)
    assert fault in str(problem.value)


def test_thoughts_beside_a_single_answer_are_that_answer_s():
    assert parse(ANSWERS["alpaca"] | {"reasoning_content": "two"})["messages"][1] == assistant(
        "answer", reasoning_content="two"
    )


# What nobody needs ---------------------------------------------------------------------------------------------------


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    "value",
    ["{", "", 3, -1.5, True, [1], {"a": {"b": None}}, float("nan"), "\ud800", {"\udfff": ["\ud800"]}, deep(400)],
)
def test_a_meta_id_or_source_of_any_type_stops_nothing_and_can_be_written(name, value, tmp_path):
    plain = parse(SYSTEMS[name])
    for field in ("meta", "id", "source", "others"):
        record = parse(SYSTEMS[name] | {field: value})
        assert {key: record[key] for key in plain} == plain
        json.dumps(record, ensure_ascii=False).encode()


def test_an_alpaca_pair_is_a_preference():
    raw = {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4", "history": [["Hi", "Hello"]]}
    assert parse(raw) == {
        "kind": "preference",
        "messages": [user("Hi"), assistant("Hello"), user("Add.", input="1 2")],
        "chosen": [assistant("3")],
        "rejected": [assistant("4")],
    }


def test_a_history_before_a_trl_prompt_is_part_of_the_conversation():
    earlier = [user("Hi"), assistant("Hello")]
    assert parse({"prompt": "a", "history": [["Hi", "Hello"]]})["messages"] == [*earlier, user("a")]
    pair = parse({"prompt": "a", "chosen": "b", "rejected": "c", "history": [["Hi", "Hello"]]})
    assert pair["messages"] == [*earlier, user("a")] and "meta" not in pair


# Our own form --------------------------------------------------------------------------------------------------------


def test_all_of_it_survives_json_lines_and_a_tfds_dataset(tmp_path):
    records = [
        parse({"messages": CALLING, "tools": [CLOCK], "documents": [{"title": "a", "text": "b"}], "id": 1}),
        parse({"messages": [user("1"), assistant("a", train=False), user("2", input="x"), assistant("b")]}),
        parse({"messages": [user("3"), assistant("c")], "label": False}),
        parse({"messages": [user("4"), assistant("")], "label": False}),
    ]
    assert records[0]["documents"] == [{"title": "a", "text": "b"}]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    assert list(sources.read(sources.Source(str(path)))) == records
    folder = build_dataset(sources.Source(str(path), heldout=0.0), "own", tmp_path)
    back = list(sources.read(sources.Source(f"tfds:{folder}:train")))
    key = lambda record: record["messages"][0]["content"]  # noqa: E731
    assert sorted(back, key=key) == sorted(records, key=key)
