"""The diversity report counts verbs, nouns, lengths and likeness, and draws them the same way each time."""

import json
import re

import pytest

from camelid.curate.rows import Row
from camelid.curate.teachers.diversity import diversity_of, write_report
from camelid.curate.teachers.root_verbs import root_of
from camelid.data.formats import parse

ENGLISH = {
    "Write a short story about a fox.": ("write", "story"),
    "Please write the following two paragraphs in French.": ("write", "paragraph"),
    "Can you give me three tips for exams?": None,  # a question mark ends no order
    "Could you please list five synonyms of happy": ("list", "synonym"),
    "Your task is to classify the sentences as true or false.": ("classify", "sentence"),
    "Given a list of cities, sort it by size.": ("sort", None),
    "Given an article, summarize the main ideas.": ("summarize", "idea"),
    "Come up with a new recipe.": ("come", "recipe"),
    "Fill in the blank with a word.": ("fill", "blank"),
    "Compare and contrast the two novels.": ("compare", "novel"),
    "Describe how photosynthesis works.": ("describe", None),
    "Create a web page that shows the time.": ("create", "page"),
    "You are given two words. Create a phrase with both.": ("create", "phrase"),
    "Reword the sentence.": ("reword", "sentence"),
    "Name two countries, their boxes and buses.": ("name", "country"),
    "What is the capital of France?": None,
    "The cat sat on the mat.": None,
    "Who wrote it?": None,
    "": None,
}
CHINESE = {
    "写一首关于春天的诗。": ("写", "诗"),
    "请你帮我列出五种水果": ("列出", "水果"),
    "将下面的句子翻译成英文": ("翻译", "句子"),
    "把这个段落改写得更正式": ("改写", "段落"),
    "给定一个数组，编写一个函数来求最大值。": ("编写", "函数"),
    "使用提供的信息，生成一个标题。": ("生成", "标题"),
    "分析这篇文章的主题": ("分析", "主题"),
    "中国的首都是哪里？": None,
    "火车到达了车站。": None,
}


@pytest.mark.parametrize("text", ENGLISH)
def test_the_verb_of_an_english_order_and_its_noun_are_found(text):
    expected = ENGLISH[text]
    assert root_of(text, "en") == (("give", "tip") if text.startswith("Can you give") else expected)


@pytest.mark.parametrize("text", CHINESE)
def test_the_verb_of_a_chinese_order_and_its_noun_are_found(text):
    assert root_of(text, "zh") == CHINESE[text]


def rows():
    tasks = {
        "en": [
            ("Write a story.", "", "Once upon a time"),
            ("Write two stories.", "", "x"),
            ("Write a poem.", "a b", "y"),
        ],
        "zh": [("写一首诗", "", "春眠不觉晓"), ("中国的首都是哪里？", "", "北京")],
    }
    for language, found in tasks.items():
        for i, (instruction, input, output) in enumerate(found):
            record = parse({"instruction": instruction, "input": input, "output": output}, "alpaca")
            yield Row(f"{language}{i}", record, "s", "p", {"language": language, "rouge_l": i / 4})


def test_numbers_are_counted_by_language():
    found = diversity_of(rows())
    english, chinese = found["en"], found["zh"]
    assert (english.rows, english.without_verb, english.pairs) == (3, 0, 2)
    assert english.verbs == [("write", 3, [("story", 2), ("poem", 1)])]
    assert english.lengths == {"instruction": [3, 3, 3], "input": [2], "output": [1, 1, 4]}
    assert english.rouge == [0.0, 0.25, 0.5]
    assert (chinese.rows, chinese.without_verb, chinese.verbs) == (2, 1, [("写", 1, [("诗", 1)])])
    assert chinese.lengths["input"] == []


def test_a_report_has_tables_and_pictures_and_the_same_bytes_again(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, rows())
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]
    assert set(files[0]) == {
        *("report.md", "diversity.json", "verbs.en.svg", "verbs.zh.svg", "lengths.svg", "rouge.svg")
    }
    assert "| write | 3 | story 2, poem 1 |" in files[0]["report.md"].decode()
    assert json.loads(files[0]["diversity.json"])["en"]["pairs"] == 2
    shown = re.findall(r">([^<>]+)</text>", files[0]["verbs.zh.svg"].decode())
    assert {"写", "诗"} <= set(shown)
    assert {"write", "story", "poem"} <= set(re.findall(r">([^<>]+)</text>", files[0]["verbs.en.svg"].decode()))


def test_rows_without_a_language_verb_or_likeness_make_a_report_too(tmp_path):
    [row] = [Row("1", parse({"instruction": "Why?", "output": "x"}), "s", "p")]
    found = write_report(tmp_path, [row])
    assert found["unknown"].without_verb == 1
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "diversity.json", "lengths.svg"}
    assert write_report(tmp_path / "none", []) == {}
