"""Lines of chat pages are removed where a page puts them, and nowhere else."""

import time

import pytest

from camelid.curate.conversations.residue import Residue, clean
from camelid.curate.rows import Row


def chat(*turns):
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, turns, strict=False)]
    return Row("0123456789abcdef0123", {"kind": "chat", "messages": messages}, "chats", "chats.json, record 1")


def texts(row):
    return [message["content"] for message in row.record["messages"]]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello.\n\nRegenerate response", "Hello."),
        ("Hello.\nRegenerate", "Hello."),
        ("ChatGPT said:\n\nHello.", "Hello."),
        ("##### ChatGPT said:\nHello.", "Hello."),
        ("ChatGPT 说：\n你好。\n\n重新生成", "你好。"),
        ("1 / 2\nChatGPT said:\nHello.", "Hello."),
        ("Hello.\n1 / 2\n\nRegenerate response", "Hello."),
        ("So it is:\n\n1 / 2\n\nRegenerate response", "So it is:\n\n1 / 2"),
        ("They are\n\n1 / 2\n\n3 / 4\n\nRegenerate", "They are\n\n1 / 2\n\n3 / 4"),
        ("Here it is:\n\nCopy code\n\nimport os", "Here it is:\n\nimport os"),
        ("模型：GPT-4\n你好。", "你好。"),
        ("Hello.\n\n‹ 2/2 ›", "Hello."),
        ("Model: GPT-4\n\nHello.\nShare Prompt", "Hello."),
        ("Model: Default (GPT-3.5)\nHello.", "Hello."),
        ("Hello.\nCopy12 chars / 3 words", "Hello."),
        ("First.\n\nRegenerate response\n\nSecond.", "First.\n\nSecond."),
        ("Thought for 12 seconds\n\nHello.", "Hello."),
        ("你好。\n\n本回答由AI生成，内容仅供参考，请仔细甄别。", "你好。"),
        ("Hello.\n\nCopy\nShare\nRegenerate response", "Hello."),
        ("There was an error generating a response", ""),
    ],
)
def test_lines_of_a_page_are_removed(text, expected):
    kept = len([line for line in expected.split("\n") if line])
    assert clean(text, "assistant") == (expected, len([line for line in text.split("\n") if line]) - kept)


@pytest.mark.parametrize(
    "text",
    [
        "```\npythonCopy codeimport os\nos.getcwd()\n```",
        "```\npythonCopy code\nimport os\nos.getcwd()\n```",
        "```pythonCopy code\nimport os\nos.getcwd()\n```",
        "```python\nCopy code\nimport os\nos.getcwd()\n```",
        "python\nCopy code\n```\nimport os\nos.getcwd()\n```",
        "pythonCopy code\n```\nimport os\nos.getcwd()\n```",
        "Copy code\n\n```python\nimport os\nos.getcwd()\n```",
        "```python\n复制代码\nimport os\nos.getcwd()\n```",
        "```\npython复制代码import os\nos.getcwd()\n```",
    ],
)
def test_the_button_above_code_becomes_the_language_of_the_block(text):
    expected = "```python\nimport os\nos.getcwd()\n```"
    assert clean(f"Like so:\n\n{text}\n\nDone.", "assistant")[0] == f"Like so:\n\n{expected}\n\nDone."


@pytest.mark.parametrize(
    "text",
    [
        "Press Regenerate response, then Copy code.",
        "The page has these buttons:\nRegenerate response\nStop generating\nand no others.",
        "```html\n<button>\nCopy code\n</button>\n```",
        "```\nCopy code\n```",
        "```\nCopy code from a to b\n```",
        "> Regenerate response",
        "1/2\n\nbecause one of two is half.",
        "1 / 2\n\nis a half.",
        "Therefore the answer is:\n\n3 / 4",
        "答案是\n\n1 / 2",
        "The series is:\n\n1 / 2\n\n2 / 3\n\n3 / 4",
        "Model: GPT-4 is a model by OpenAI.\nIt is large.",
        "Model: GPT-4\nMaker: OpenAI",
        "It has\nMaker: OpenAI\nModel: GPT-4",
        "模型：GPT-4是一个模型\n它很大。",
        "Read the label:\nRegenerate response",
        "看这个按钮：\n\n重新生成",
        "Choose one of:\n\nShare\nRegenerate response",
        "Press it:\n\nRegenerate response\n\nand wait.",
        "3 / 2\nis more than one.",
        "1 / 2",
        "Copy\nthis line.",
        "9:00 AM\nBreakfast\n12:00 PM\nLunch",
        "Today at 3:45 PM\nwe met.",
        "You said: no. I said: yes.",
        "12:30\n是午饭时间。",
        "User\nAssistant",
        "- Copy code\n- Share Prompt",
        "Model: T-800\nSeries: 101",
        "    Copy code\n    indented",
        "Sum: 3 / 4 of all\n\n1 / 2 of them",
    ],
)
def test_the_same_words_in_prose_and_code_stay(text):
    assert clean(text, "assistant") == (text, 0)
    assert clean(text, "user") == (text, 0)


def test_turns_of_users_never_become_empty():
    for text in ("Regenerate response", "Copy code", "1 / 2\nRegenerate response", "重新生成"):
        assert clean(text, "user") == (text, 0)


def test_times_and_short_labels_are_removed_where_turns_share_them():
    row = Residue()(chat("What is it?\n12:30 PM", "Lunch.\n12:31 PM", "And then?\n1:05 PM", "A nap.\n1:06 PM"))
    assert texts(row) == ["What is it?", "Lunch.", "And then?", "A nap."]
    assert row.columns == {"residue_lines": 4}
    once = chat("When?\n12:30 PM", "Fine.")
    assert Residue()(once) is once
    assert texts(Residue()(chat("今天\n你好\n", "复制\n好的", "谢谢", "复制\n不用谢")))[1:] == [
        "好的",
        "谢谢",
        "不用谢",
    ]


def test_counters_that_look_like_fractions_are_removed_above_two_turns_and_never_below_them():
    assert texts(Residue()(chat("q", "2 / 2\nHello.", "3 / 3\nAnd then?", "No."))) == [
        "q",
        "Hello.",
        "And then?",
        "No.",
    ]
    for fractions in (("q", "It is\n\n1 / 2", "r", "It is\n\n2 / 3"), ("q", "1 / 2\nof it.", "r", "All.")):
        row = chat(*fractions)
        assert Residue()(row) is row


def test_an_answer_of_nothing_but_an_error_is_left_out():
    row = Residue()(chat("q", "a", "r", "There was an error generating a response"))
    assert texts(row) == ["q", "a"]
    assert row.columns == {"residue_lines": 1, "turns_empty": 1, "turns_trailing": 1}
    assert Residue()(chat("q", "Too many requests in 1 hour. Try again later.")).reason == "no_answer"


def test_clean_rows_and_texts_are_returned_themselves():
    row = chat("q", "```python\nx = 1\n``` \n\nDone. ")
    assert Residue()(row) is row
    text = Row("0", {"kind": "text", "text": "Copy code\nx"}, "web", "web.jsonl, line 1")
    assert Residue()(text) is text


def test_answers_of_preferences_are_cleaned():
    record = {
        "kind": "preference",
        "messages": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a\n\nRegenerate response"}],
        "rejected": [{"role": "assistant", "content": "‹ 1/2 ›\nb"}],
    }
    found = Residue()(Row("0", record, "s", "p"))
    assert [found.record[side][0]["content"] for side in ("chosen", "rejected")] == ["a", "b"]


@pytest.mark.parametrize("unit", ["Copy code\n", "```\nCopy code\n", "1 / 2\n", "Copy\n", "# ", "\n"])
def test_time_grows_with_the_length_of_a_text(unit):
    def seconds(count):
        start = time.process_time()
        clean(unit * count, "assistant")
        return time.process_time() - start

    assert seconds(40_000) < 20 * seconds(4_000) + 0.2  # 100 times as long if it were quadratic
