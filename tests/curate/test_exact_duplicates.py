"""Of rows with equal text, the one with the smallest id stays."""

import random

import pytest

from camelid.curate.duplicates.exact import ExactDuplicates
from camelid.curate.rows import Row
from camelid.errors import UserError

from .partitions import chat_row, rejected, text_row


def kept(step, rows, folder):
    gone = rejected(step, rows, folder)
    return sorted(row.id for row in rows if row.id not in gone)


def test_the_kept_row_is_the_first_of_each_text_whatever_the_partitions(tmp_path):
    draw = random.Random(0)
    texts = [f"text {draw.randrange(150)}" for _ in range(1000)]
    rows = [text_row(f"{number:05d}", text) for number, text in enumerate(texts)]
    first = {text: number for number, text in reversed(list(enumerate(texts)))}
    expected = {
        f"{number:05d}": f"equals {first[text]:05d}" for number, text in enumerate(texts) if first[text] != number
    }
    for count in (1, 7):
        found = rejected(ExactDuplicates(), rows, tmp_path, count)
        assert {id: why.detail for id, why in found.items()} == expected
        assert {why.reason for why in found.values()} == {"exact_duplicate"}


@pytest.mark.parametrize(
    "setting, one, other",
    [
        ("ignore_case", "Straße", "STRASSE"),
        ("ignore_whitespace", "a  b\n", "a b"),
        ("ignore_width", "ＡＢＣ１２３", "ABC123"),
        ("ignore_punctuation", "Well, done!", "Well done"),
        ("ignore_punctuation", "你好，世界。", "你好世界"),
    ],
)
def test_each_setting_makes_texts_equal_that_differ_without_it(setting, one, other, tmp_path):
    rows = [text_row("a", one), text_row("b", other)]
    assert kept(ExactDuplicates(**{setting: True}), rows, tmp_path) == ["a"]
    assert kept(ExactDuplicates(**{setting: False}), rows, tmp_path) == ["a", "b"]


def test_sums_and_texts_of_punctuation_alone_stay_apart_without_punctuation(tmp_path):
    rows = [text_row(id, text) for id, text in zip("abcd", ["?", "!", "1 + 1", "1 = 1"], strict=True)]
    assert kept(ExactDuplicates(ignore_punctuation=True), rows, tmp_path) == list("abcd")


def test_a_part_of_conversations_can_be_compared(tmp_path):
    rows = [
        chat_row("a", "Hi", "Hello", "Bye", "See you"),
        chat_row("b", "Hi", "Hello"),
        chat_row("c", "Hey", "Hello"),
        chat_row("d", "hi", "HELLO"),
        text_row("e", "Hi"),
    ]
    assert kept(ExactDuplicates(), rows, tmp_path) == ["a", "b", "c", "e"]
    assert kept(ExactDuplicates(compare="first_turn"), rows, tmp_path) == ["a", "c", "e"]
    assert kept(ExactDuplicates(compare="user"), rows, tmp_path) == ["a", "b", "c", "e"]
    assert kept(ExactDuplicates(compare="answers"), rows, tmp_path) == ["a", "b", "e"]


def test_rows_are_not_equal_if_roles_labels_calls_or_compared_answers_differ(tmp_path):
    def called(id, city):
        row = chat_row(id, "Weather?", "")
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        row.record["messages"][1]["tool_calls"] = [call]
        return row

    def compared(id, chosen, rejected):
        record = {"kind": "preference", "messages": [{"role": "user", "content": "Which?"}]}
        answers = {"chosen": {"role": "assistant", "content": chosen}, "rejected": {"role": "assistant"}}
        answers["rejected"]["content"] = rejected
        return Row(id, record | answers, "s", "p")

    rows = [
        *(text_row("a", "Hi\nHello"), chat_row("b", "Hi", "Hello"), chat_row("c", "Hi\nHello")),
        *(chat_row("d", "Hi", "Hello", label=True), chat_row("e", "Hi", "Hello", label=False)),
        *(called("f", "Oslo"), called("g", "Rome"), called("h", "Oslo")),
        *(compared("i", "this", "that"), compared("j", "that", "this"), compared("k", "this", "that")),
    ]
    assert kept(ExactDuplicates(), rows, tmp_path) == list("abcdefgij")


def test_rows_without_a_compared_text_stay(tmp_path):
    rows = [text_row("a", ""), text_row("b", ""), chat_row("c", "Hi"), chat_row("d", "Ho")]
    assert kept(ExactDuplicates(compare="answers"), rows, tmp_path) == list("abcd")
    assert rejected(ExactDuplicates(), [], tmp_path) == {}


def test_raw_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="parse"):
        rejected(ExactDuplicates(), [Row("a", {"instruction": "Hi"}, "s", "p")], tmp_path)
