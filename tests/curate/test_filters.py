"""Conversations are chosen by length, by who the assistant says it is, and by refusals."""

import json
import re
import time
from pathlib import Path

import pytest

from camelid.curate.conversations.filters import Identity, Length, Refusals, refusal_of, rename, says_who
from camelid.curate.conversations.phrases import tables
from camelid.curate.rows import Rejected, Row
from camelid.errors import UserError
from camelid.settings.sections import read

SHARED = Path(__file__).parents[3] / "shared" / "data"


def chat(*turns, **fields):
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, turns, strict=False)]
    return Row("0", {"kind": "chat", "messages": messages, **fields}, "chats", "chats.json, record 1")


def preference(chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return Row("0", {"kind": "preference", "messages": [{"role": "user", "content": "q"}], **answers}, "p", "p:1")


def texts(row):
    return [message["content"] for message in row.record["messages"]]


# Length ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, reason, detail",
    [
        ({"least_characters": 9}, "few_characters", "8 characters; at least 9 are kept"),
        ({"most_characters": 7}, "many_characters", "8 characters; at most 7 are kept"),
        ({"least_turns": 5}, "few_turns", "4 turns; at least 5 are kept"),
        ({"most_turns": 3}, "many_turns", "4 turns; at most 3 are kept"),
    ],
)
def test_records_that_are_too_short_or_too_long_are_rejected(settings, reason, detail):
    assert Length(**settings)(chat("q1", "a1", "q2", "a2")) == Rejected(reason, detail)


def test_lengths_at_the_limits_are_kept_as_columns():
    limits = {"least_characters": 8, "most_characters": 8, "least_turns": 4, "most_turns": 4}
    assert Length(**limits)(chat("q1", "a1", "q2", "a2")).columns == {"characters": 8, "turns": 4}
    assert Length()(preference("good", "bad")).columns == {"characters": 8, "turns": 2}
    text = Row("0", {"kind": "text", "text": "四个汉字"}, "web", "web:1")
    assert Length(least_turns=2)(text).columns == {"characters": 4}


def test_limits_that_exclude_each_other_are_an_error():
    with pytest.raises(UserError, match=r"least_turns = 5 is above c\.most_turns = 2"):
        read({"least_turns": 5, "most_turns": 2}, Length, "c")
    with pytest.raises(UserError, match=r"c\.most_tokens = 5 does nothing where c\.tokenizer is None"):
        read({"most_tokens": 5}, Length, "c")


# Identity -------------------------------------------------------------------------------------------------

WHO = [
    "I am ChatGPT, a large language model trained by OpenAI.",
    "Hello! I'm ChatGPT. How can I help?",
    "I’m an AI language model developed by OpenAI and based on GPT-3.5.",
    "As an AI language model trained by OpenAI, I have no feelings.",
    "My name is Claude, an AI assistant made by Anthropic.",
    "You can call me ERNIE Bot.",
    "OpenAI created me in 2022.",
    "My creators are researchers at OpenAI.",
    "I was trained by a team of engineers at OpenAI.",
    "我是ChatGPT，一个由OpenAI训练的大型语言模型。",
    "我是由OpenAI开发的人工智能语言模型。",
    "您好，我是百度研发的文心一言，很高兴见到您。",
    "我的名字叫通义千问。",
    "作为OpenAI训练的语言模型，我没有感情。",
    "您可以叫我智谱清言。",
    "阿里云开发了我。",
]
NOT_WHO = [
    "I am not ChatGPT, and I was not trained by OpenAI.",
    "ChatGPT is a large language model trained by OpenAI.",
    "I think that GPT-4 was developed by OpenAI.",
    "I am a fan of ChatGPT and use it daily.",
    'He wrote: "I am ChatGPT, a model trained by OpenAI."',
    "> I am ChatGPT, a model trained by OpenAI.",
    "```\nI am ChatGPT, trained by OpenAI\n```",
    "Run `I am ChatGPT` in the shell.",
    "I'm Claude, the neighbour's son.",
    "I was hired by Google last year.",
    "Bard: I am the poet of the village.",
    "我不是ChatGPT。",
    "我认为GPT-4是由OpenAI开发的。",
    "他说：“我是ChatGPT，由OpenAI训练。”",
    "我叫小明，我喜欢用ChatGPT写作。",
    "我被百度公司录用了。",
    "文心一言是百度开发的语言模型。",
]


@pytest.mark.parametrize("answer", WHO)
def test_answers_that_say_who_speaks_are_found(answer):
    assert says_who(answer) is not None
    assert says_who(f"Of course.\n\n{answer} What else?") is not None
    assert Identity()(chat("Who are you?", answer)).reason == "identity"


@pytest.mark.parametrize("answer", NOT_WHO)
def test_denials_quotations_and_talk_of_others_are_not(answer):
    row = chat("Who are you?", answer)
    assert Identity()(row) is row


def test_what_users_say_does_not_count():
    row = chat("I am ChatGPT, trained by OpenAI.", "No, you are not.")
    assert Identity()(row) is row and Refusals()(row) is row


@pytest.mark.parametrize(
    "answer, expected",
    [
        (WHO[0], "I am Camel, a large language model trained by Oasis."),
        (WHO[2], "I’m an AI language model developed by Oasis and based on Camel."),
        (WHO[9], "我是Camel，一个由Oasis训练的大型语言模型。"),
        (WHO[11], "您好，我是Oasis研发的Camel，很高兴见到您。"),
        ("I am ChatGPT. ChatGPT is known.", "I am Camel. ChatGPT is known."),
        ('I am ChatGPT. He wrote "I am ChatGPT, a model".', 'I am Camel. He wrote "I am ChatGPT, a model".'),
        *[(answer, answer) for answer in NOT_WHO],
    ],
)
def test_names_are_replaced_only_where_the_assistant_says_who_it_is(answer, expected):
    assert rename(answer, "Camel", "Oasis") == expected
    assert says_who(rename(answer, "Camel", "Oasis")) is None


def test_identity_can_drop_pairs_or_rename():
    row = chat("Who are you?", WHO[0], "Two and two?", "Four.", "Who made you?", "OpenAI created me.")
    dropped = Identity(action="drop_pair")(row)
    assert texts(dropped) == ["Two and two?", "Four."] and dropped.columns == {"identity_turns": 2}
    renamed = Identity(action="rename", name="Camel", maker="Oasis")(row)
    assert texts(renamed)[5] == "Oasis created me." and renamed.columns == {"identity_turns": 2}
    assert Identity(action="drop_pair")(chat("Who?", WHO[0])).reason == "identity"
    assert Identity(action="drop_pair")(chat("Who?", WHO[0], "q", "a", label=True)).columns == {"identity_turns": 1}
    assert Identity(action="drop_pair")(chat("q", "a", "Who?", WHO[0], label=True)).reason == "identity"
    with pytest.raises(UserError, match=r"c\.action = rename needs c\.name and c\.maker"):
        read({"action": "rename", "name": "Camel"}, Identity, "c")
    with pytest.raises(UserError, match=r"c\.name = 'Camel' does nothing"):
        read({"name": "Camel"}, Identity, "c")


def test_every_pattern_of_a_name_begins_with_letters():
    families = tables("identity.toml")["families"]
    for names in (each for family in families.values() for each in family.values()):
        assert all(re.match(r"[A-Za-z]{3}|[\u4e00-\u9fff]{2}", name) for name in names)


# Refusals -------------------------------------------------------------------------------------------------

REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot provide instructions for this.",
    "I apologize, but I am not able to assist with this request.",
    "As an AI language model, I don't have personal opinions.",
    "I am sorry, but as an AI language model, I do not have access to real-time data.",
    "Unfortunately, I am an AI and cannot edit images.",
    "I understand that you are upset, but I can't help with this.",
    "I cannot fulfill this request.",
    "很抱歉，我无法提供该信息。",
    "对不起，我不能回答这个问题。",
    "作为一个AI语言模型，我没有个人观点。",
    "您好，我无法看到您提到的图片。",
    "抱歉，作为一个人工智能助手，我无法看到物体。",
    "由于我是一个人工智能，我无法给出主观评分。",
]
DISCLAIMED = [
    "As an AI assistant, I'd be happy to plan your trip!",
    "Certainly! As an AI language model, I can explain it.",
    "作为人工智能助手，我很乐意帮助您解答问题！",
]
ANSWERED = [
    "I'm sorry to hear that you are ill.",
    "I apologize for the confusion. The method is called `find`.",
    "I'm sorry, but you didn't give me the text. Could you paste it?",
    "Unfortunately, I cannot determine the angle from two sides.",
    "Sure! Here is a reply: \"I'm sorry, but I can't help with that.\"",
    "Here is the code.\n\nIt is short. As an AI language model, I cannot run it.",
    "> I'm sorry, but I can't help with that.\n\nThis is what it said.",
    "Dear John,\n\nI am unable to come to work today.",
    "As a nurse, I cannot give you that medicine.",
    "很抱歉听到你生病了。",
    "很抱歉，您没有提供文本，请提供。",
    "人类无法飞行，因为没有翅膀。",
    "作为一个魔术师，我必须准确地读懂观众。",
    "他说：“很抱歉，我无法提供该信息。”",
    "人工智能是计算机科学的一个分支。",
]


@pytest.mark.parametrize("answer", REFUSED)
def test_refusals_are_found_at_the_beginning_of_answers(answer):
    assert refusal_of(answer)[0] == "refusal"
    assert Refusals()(chat("q", answer)).reason == "refusal"


@pytest.mark.parametrize("answer", DISCLAIMED)
def test_disclaimers_are_told_from_refusals(answer):
    assert Refusals()(chat("q", answer)).reason == "disclaimer"
    row = chat("q", answer)
    assert Refusals(disclaimers=False)(row) is row


@pytest.mark.parametrize("answer", ANSWERED)
def test_apologies_quotations_and_talk_of_machines_are_not_refusals(answer):
    row = chat("q", answer)
    assert Refusals()(row) is row


def test_pairs_with_refusals_can_be_left_out():
    row = chat("q", REFUSED[0], "r", "a", "s", REFUSED[8])
    found = Refusals(action="drop_pair")(row)
    assert texts(found) == ["r", "a"] and found.columns == {"refusal_turns": 2}
    assert Refusals(action="drop_pair")(chat("q", REFUSED[0])).reason == "refusal"


def test_the_chosen_answer_of_a_preference_counts():
    row = preference("Of course.", REFUSED[0])
    assert Refusals()(row) is row
    assert Refusals(action="drop_pair")(preference(REFUSED[0], "Of course.")).reason == "refusal"


@pytest.mark.parametrize(
    "unit",
    ["I am ", "I understand ", "I'm sorry ", "“", '"', "「", "as an AI ", "我是大型语言模型", "OpenAI created "],
)
def test_time_grows_with_the_length_of_an_answer(unit):
    def seconds(count):
        start = time.process_time()
        refusal_of(unit * count), says_who(unit * count), rename(unit * count, "a", "b")
        return time.process_time() - start

    seconds(3)
    assert seconds(20_000) < 30 * seconds(2_000) + 0.2


# Real answers ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_real_answers_that_say_who_speaks_are_all_found_and_no_others():
    records = json.loads((SHARED / "sharegpt_en.json").read_text())
    answers = [turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "gpt"]
    assert [says_who(answer) is not None for answer in answers] == ["LMSYS" in answer for answer in answers]
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for record in json.loads((SHARED / f"{name}.json").read_text()):
            assert says_who(record["output"]) is None


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize("name, least, most", [("alpaca_en_demo", 25, 32), ("alpaca_zh_demo", 35, 42)])
def test_real_answers_that_refuse_are_few(name, least, most):
    records = json.loads((SHARED / f"{name}.json").read_text())
    assert least <= sum(refusal_of(record["output"]) is not None for record in records) <= most
