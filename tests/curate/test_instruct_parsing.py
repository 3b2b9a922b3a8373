"""Tasks are read from answers of many shapes, whole or with the reason why not, and none is emitted cut."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.curate.teachers.instruct_parsing import (
    REASONS,
    parse_answer,
    parse_instance,
    parse_instructions,
    parse_tasks,
)
from camelid.curate.teachers.seeds import Task

TASKS = [
    Task("Sort the given numbers.", "3, 1, 2", "1, 2, 3"),
    Task("Write a program that echoes its input.", "", '```python\nx = input("Input: ")\n# Output: 25\nprint(x)\n```'),
    Task("List three birds.", "", "1. owl\n2. eagle\n3. **duck**\n\n4) robin\n### Notes\nNone of them is a fish."),
    Task("Answer the question about the table:\n| a | b |\n|---|---|", "Which row?\n- first\n- second", "The first."),
    Task("Explain recursion.", "", "See step 1: a function calls itself. Question: why? Answer: it is short."),
]
HAN_TASKS = [
    Task("给下面的数字排序。", "3、1、2", "1、2、3"),
    Task("写一首关于春天的诗。", "", "春眠不觉晓，\n处处闻啼鸟。"),
    Task("列出三种鸟。", "", "1. 猫头鹰\n2. 鹰\n3. 鸭子\n问题：还有吗？\n答案：有。"),
]
SHAPES = {
    "alpaca": "###\n{n}. Instruction: {i}\n{n}. Input:\n{x}\n{n}. Output:\n{o}\n",
    "bold with numbers": "**{n}. Instruction:** {i}\n**{n}. Input:** {x}\n**{n}. Output:** {o}\n\n",
    "bold inside": "{n}. **Instruction**: {i}\n{n}. **Input**: {x}\n{n}. **Output**: {o}\n",
    "numbers after": "Instruction {n}: {i}\nInput {n}: {x}\nOutput {n}: {o}\n",
    "brackets": "{n}) Instruction: {i}\n{n}) Input: {x}\n{n}) Output: {o}\n---\n",
    "headings": "## Task {n}\n\n**Instruction:** {i}\n\n**Input:** {x}\n\n**Output:**\n{o}\n\n",
    "titled headings": "### Task {n}: A title\n- Instruction: {i}\n- Input: {x}\n- Output: {o}\n",
    "bare headings": "{n}.\nInstruction: {i}\nInput: {x}\nOutput: {o}\n\n",
    "separators": "Instruction: {i}\nInput: {x}\nOutput: {o}\n\n###\n\n",
    "reordered": "{n}. Input: {x}\n{n}. Instruction: {i}\n{n}. Output: {o}\n",
    "reordered headings": "Task {n}\nOutput: {o}\nInstruction: {i}\nInput: {x}\n\n",
    "capitals": "{n}. INSTRUCTION: {i}\n{n}. INPUT: {x}\n{n}. OUTPUT: {o}\n",
    "parts counted": "{a}. Instruction: {i}\n{b}. Input: {x}\n{c}. Output: {o}\n",
}
HAN_SHAPES = {
    "numbered": "###\n{n}. 指令：{i}\n{n}. 输入：\n{x}\n{n}. 输出：\n{o}\n",
    "full-width numbers": "{w}．指令：{i}\n{w}．输入：{x}\n{w}．输出：{o}\n",
    "headings": "任务{n}：\n指令：{i}\n输入：{x}\n输出：{o}\n\n",
    "brackets": "【任务{n}】\n【指令】：{i}\n【输入】：{x}\n【输出】：{o}\n",
    "bold": "**指令{n}**：{i}\n**输入{n}**：{x}\n**输出{n}**：{o}\n\n",
    "ordinal": "第{n}题：\n指令: {i}\n输入: {x}\n输出: {o}\n\n",
}
BEGINS = ["", "Sure! Here are the tasks you asked for:\n\n", "```\n"]
NO_INPUTS = ["<noinput>", "None", "N/A", "(no input)", ""]
HAN_NO_INPUTS = ["<无输入>", "无", "（无）", "没有输入。"]


def written(tasks, shape, no_input, first=4):
    """The tasks as a teacher may write them."""
    made = []
    for n, task in enumerate(tasks, first):
        parts = {"a": 3 * n - 2, "b": 3 * n - 1, "c": 3 * n, "n": n, "w": chr(ord("０") + n)}
        made.append(shape.format(i=task.instruction, x=task.input or no_input, o=task.output, **parts))
    return "".join(made)


def cases():
    for name, shape in SHAPES.items():
        yield pytest.param(TASKS, shape, NO_INPUTS, id=name)
    for name, shape in HAN_SHAPES.items():
        yield pytest.param(HAN_TASKS, shape, HAN_NO_INPUTS, id=f"Chinese {name}")


@pytest.mark.parametrize(("tasks", "shape", "no_inputs"), [*cases()])
def test_the_tasks_that_were_written_are_read_in_each_shape(tasks, shape, no_inputs):
    for no_input, begin in itertools.product(no_inputs, BEGINS):
        text = begin + written(tasks, shape, no_input) + ("```" if begin == "```\n" else "")
        found = parse_tasks(text)
        assert [(each.task, each.reason) for each in found] == [(task, "") for task in tasks], text


@pytest.mark.parametrize(("tasks", "shape", "no_inputs"), [*cases()])
def test_an_answer_that_is_cut_anywhere_gives_whole_tasks_and_one_that_is_cut(tasks, shape, no_inputs):
    text = written(tasks, shape, no_inputs[0])
    kept = set()
    for length in range(1, len(text)):
        found = parse_tasks(text[:length], "length")
        whole = [each.task for each in found if not each.reason]
        assert all(task in tasks for task in whole), text[:length]
        assert found[-1].reason == "cut"
        kept.add(len(whole))
    assert kept == set(range(len(tasks)))


def test_a_task_without_a_label_for_its_instruction_begins_with_its_number():
    text = "4. Write a poem.\nOutput: Roses\n1. red\n2. blue\n"
    text += "5. Name birds.\nInput: none\nOutput:\n1. owl\n2. duck\n6. robin\n"
    text += "6. Greet Bob.\nInput: Bob\nOutput: Hello Bob"
    assert [each.task for each in parse_tasks(text)] == [
        Task("Write a poem.", "", "Roses\n1. red\n2. blue"),
        Task("Name birds.", "", "1. owl\n2. duck\n6. robin"),
        Task("Greet Bob.", "Bob", "Hello Bob"),
    ]


def test_a_label_that_is_written_twice_is_no_text():
    text = "1. Instruction: Sort.\n1. Input:\n1. Input:\n3 1\n1. Output: 1 3\n2. Instruction: Add.\n2. Input: 1, 2\n"
    text += "1. Input:\n2. Output:\n3\n"
    assert [each.task for each in parse_tasks(text)] == [Task("Sort.", "3 1", "1 3"), Task("Add.", "1, 2", "3")]
    text = "Instruction: Echo.\nInput:\nInput:\n3 1\nOutput:\nOutput: 5\nOutput:\nend"
    assert [each.task for each in parse_tasks(text)] == [Task("Echo.", "3 1", "Output: 5\nOutput:\nend")]


@pytest.mark.parametrize(
    "closing",
    [
        "I hope these tasks are what you asked for!",
        "Let me know if you need any more tasks or other changes.",
        "These are the ten tasks. They vary in length.",
        "希望这些任务对您有帮助！",
        "以上就是五个任务。",
        "如果您需要更多任务，请告诉我。",
    ],
)
def test_what_the_teacher_says_about_the_tasks_is_no_output(closing):
    for between in ("\n\n", "\n\n---\n\n", "\n###\n"):
        text = written(TASKS[:2], SHAPES["alpaca"], "None").rstrip() + between + closing
        assert [each.task for each in parse_tasks(text)] == TASKS[:2], text
    with_list = [TASKS[0], Task("Write to me.", "", f"Hello.\n{closing}")]
    assert [each.task for each in parse_tasks(written(with_list, SHAPES["alpaca"], "None"))] == with_list


@pytest.mark.parametrize("end", ["These tasks can wait.", "I hope this helps!", "Let me know if you need more help."])
def test_the_last_paragraph_of_an_output_stays(end):
    tasks = [TASKS[0], Task("How do I plan my day?", "", f"Write a list of tasks.\n\n{end}")]
    assert [each.task for each in parse_tasks(written(tasks, SHAPES["alpaca"], "None"))] == tasks


def test_words_that_can_be_labels_are_labels_where_nothing_else_is():
    text = "1. Question: How high is it?\n1. Answer: High.\n2. Question: How far?\n2. Answer: Far."
    assert [each.task for each in parse_tasks(text)] == [
        Task("How high is it?", "", "High."),
        Task("How far?", "", "Far."),
    ]
    text = "问题：多高？\n回答：很高。\n\n问题：多远？\n回答：很远。"
    assert [each.task for each in parse_tasks(text)] == [Task("多高？", "", "很高。"), Task("多远？", "", "很远。")]


def test_bold_text_in_a_part_stays_bold():
    [found] = parse_tasks("**Instruction:** **Sort** these.\n**Input**: **3**, 1\n**Output:** **1**, 3")
    assert found.task == Task("**Sort** these.", "**3**, 1", "**1**, 3")


def test_a_list_of_objects_is_read():
    text = (
        '```json\n[{"Instruction": "Sort", "Input": "3 1", "Output": "1 3"}, {"instruction": "Go", "output": 5}]\n```'
    )
    assert [(each.task, each.reason) for each in parse_tasks(text)] == [
        (Task("Sort", "3 1", "1 3"), ""),
        (Task("Go"), "no_output"),
    ]
    assert parse_tasks('{"指令": "排序", "输出": "1"}')[0].task == Task("排序", "", "1")


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("", "stop", "empty_answer"),
        (" \n ", "", "empty_answer"),
        ("", "length", "cut"),
        ("", "content_filter", "cut"),
        ("I cannot help with that.", "stop", "unreadable"),
        ("I would gladly", "length", "cut"),
        ("1. Sort\n2. Go", "stop", "unreadable"),
        ("4. Instruction: Sort\n4. Input: 3", "stop", "no_output"),
        ("4. Instruction: Sort\n4. Output:", "stop", "no_output"),
        ("4. Instruction:\n4. Output: 1", "stop", "no_instruction"),
        ("4. Input: 1\n4. Output: 1", "stop", "no_instruction"),
        ("4. Instruction: Sort\n4. Output: 1", "max_tokens", "cut"),
    ],
)
def test_what_cannot_be_used_has_a_reason(text, finish_reason, reason):
    [found] = parse_tasks(text, finish_reason)
    assert found.reason == reason and reason in REASONS


def test_a_missing_part_costs_one_task_and_not_its_neighbours():
    text = "4. Instruction: a\n4. Output: b\n5. Instruction: c\n6. Instruction: d\n6. Input: e\n6. Output: f"
    assert [(each.task, each.reason) for each in parse_tasks(text)] == [
        (Task("a", "", "b"), ""),
        (Task("c"), "no_output"),
        (Task("d", "e", "f"), ""),
    ]


def test_instructions_are_read_from_a_numbered_list():
    text = "Here you are:\n9. Sort the list.\n10. Explain this:\n   1. a\n   2. b\n**11. Name a river.**\n"
    found = parse_instructions(text)
    assert [each.task.instruction for each in found] == [
        "Sort the list.",
        "Explain this:\n   1. a\n   2. b",
        "Name a river.",
    ]
    cut = parse_instructions(text, "length")
    assert [each.reason for each in cut] == ["", "", "cut"]
    labelled = parse_instructions("1. Instruction: Sort\n2. Instruction: Go")
    assert [(each.task, each.reason) for each in labelled] == [(Task("Sort"), ""), (Task("Go"), "")]
    assert [each.reason for each in parse_instructions("")] == ["empty_answer"]
    assert [each.reason for each in parse_instructions("I cannot.")] == ["unreadable"]


def test_input_and_output_of_an_instruction_are_read_and_the_instruction_stays():
    assert parse_instance("Sort", "Input: 3 1\nOutput:\n1 3").task == Task("Sort", "3 1", "1 3")
    assert parse_instance("Sort", "Instruction: Sort it\nInput: None\nOutput: 1").task == Task("Sort", "", "1")
    assert parse_instance("排序", "输入：<无输入>\n输出：1").task == Task("排序", "", "1")
    assert parse_instance("Sort", "1 3").reason == "no_output"
    assert parse_instance("Sort", "Output: 1", "length").reason == "cut"
    assert (parse_instance("Sort", "").task, parse_instance("Sort", "").reason) == (Task("Sort"), "empty_answer")


def test_an_answer_as_it_stands_is_the_output():
    assert parse_answer("Sort", " Input: 5\n").task == Task("Sort", "", "Input: 5")
    assert [parse_answer("Sort", text, why).reason for text, why in [("x", "length"), ("", "stop")]] == [
        "cut",
        "empty_answer",
    ]


PIECES = [
    "Instruction",
    "Input",
    "Output",
    "指令",
    "输出",
    "Task",
    "4",
    "5.",
    ":",
    "：",
    "**",
    "###",
    "\n",
    " ",
    "x",
    "```",
    "{",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.sampled_from(["stop", "length", ""]))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_candidates_with_known_reasons(pieces, finish_reason):
    for read in (parse_tasks, parse_instructions):
        found = read("".join(pieces), finish_reason)
        assert found and all(each.reason in ("", *REASONS) for each in found)
        assert all(each.reason or each.task.instruction for each in found)
        assert finish_reason != "length" or found[-1].reason == "cut"


@pytest.mark.parametrize(
    "piece", [" ", "4 ", "Input ", "4. x\n", "Instruction", "```\n", "**", "\n", "4. Input: x\n", "[", "#"]
)
def test_an_answer_that_repeats_itself_is_read_in_little_time(piece):
    for begin in ("", "4", "Task 4", "Instruction", "4. Instruction: x\n4. Output:"):
        seconds = time.perf_counter()
        parse_tasks(begin + piece * (20_000 // len(piece)) + "!")
        assert time.perf_counter() - seconds < 4  # quadratic patterns take minutes
