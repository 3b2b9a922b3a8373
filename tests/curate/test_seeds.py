"""Seed tasks are read from every form, and a file that has none says so with its place."""

import gzip
import json

import pytest

from camelid.curate.teachers.seeds import Task, language_of, read_seeds
from camelid.errors import UserError


def write(path, *records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def test_self_instruct_alpaca_chat_and_bare_instructions_become_tasks(tmp_path):
    instances = [{"input": "Night : Day", "output": "opposites"}, {"input": "second", "output": "no"}]
    path = write(
        tmp_path / "seeds.jsonl",
        {
            "id": "seed_task_1",
            "instruction": " What is the relation? ",
            "instances": instances,
            "is_classification": True,
        },
        {"instruction": "写一首诗", "input": "", "output": "床前明月光"},
        {"instruction": "Explain quantum mechanics to a child"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    )
    assert read_seeds(path) == [
        Task("What is the relation?", "Night : Day", "opposites"),
        Task("写一首诗", "", "床前明月光"),
        Task("Explain quantum mechanics to a child"),
        Task("Hi", "", "Hello"),
    ]


def test_a_text_file_has_an_instruction_on_each_line_and_a_glob_takes_files_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("\ufeffName a river.\n\n  写一首诗  \n", encoding="utf-8")
    write(tmp_path / "a.jsonl", {"instruction": "First", "output": "1"})
    assert [task.instruction for task in read_seeds(tmp_path / "*")] == ["First", "Name a river.", "写一首诗"]


def test_a_packed_file_is_read(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"instruction": "Sort", "input": "3 1", "output": "1 3"}')
    assert read_seeds(tmp_path / "a.jsonl.gz") == [Task("Sort", "3 1", "1 3")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"instruction": ""}', "a.jsonl:2: no seed task .*must not be empty"),
        ('{"instruction": 5}', "have to be texts"),
        ('{"instruction": "x", "instances": [{"output": ["y"]}]}', "have to be texts"),
        ('{"instruction": "x", ', "a.jsonl:2: no seed task"),
        (r'{"instruction": "half \ud83d a smile", "output": "x"}', r"a.jsonl:2: .*lone surrogate '.ud83d'"),
        (r'{"instruction": "x", "instances": [{"input": "\udc00", "output": "y"}]}', "lone surrogate"),
        (r'{"messages": [{"role": "user", "content": "\ud83d"}]}', "lone surrogate"),
        ('{"text": "a page"}', "no question of a user"),
        ('{"colour": "red"}', "no format has the fields colour"),
        ("[1]", "an object with named fields"),
    ],
)
def test_a_record_that_is_no_task_is_an_error_with_its_place(line, said, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"instruction": "fine"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_seeds(tmp_path / "a.jsonl")


def test_a_file_without_tasks_and_one_that_is_not_utf8_are_errors(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no seed tasks"):
        read_seeds(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("写一首诗".encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_seeds(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Name a river.", "en"),
        ("说出一条河", "zh"),
        ("翻译成英文：How are you?", "zh"),
        ("What does 你好 mean?", "en"),
        ("HTML是什么？", "zh"),
        ("用Python写一个函数", "zh"),
        ("Translate the poem 床前明月光，疑是地上霜 into plain modern English for a child.", "en"),
        ("Что это?", None),
        ("12 + 3 = ?", None),
    ],
)
def test_the_language_of_a_text_is_told_by_its_letters(text, language):
    assert language_of(text) == language
