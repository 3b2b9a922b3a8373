"""A teacher whose answers follow from what it is asked: numbered lists of tasks in many shapes, with planted faults."""

import json
import random
import re

from camelid.serve.journal import Reply, key_of

VERBS = ["Sort", "Name", "Explain", "Translate", "Rewrite", "Compare", "Describe", "Correct", "Complete", "Invent"]
NOUNS = ["rivers", "birds", "poems", "recipes", "letters", "planets", "bridges", "trains", "songs", "villages", "coins"]
HAN_VERBS = ["写", "列出", "解释", "翻译", "比较", "总结", "描述", "改写", "分析", "计算"]
HAN_NOUNS = ["河流", "诗歌", "菜谱", "故事", "桥梁", "星球", "花园", "城市", "句子", "天气", "历史", "音乐"]

SHAPES = [
    "{n}. Instruction: {i}\n{n}. Input:\n{x}\n{n}. Output:\n{o}\n###\n",
    "**{n}. Instruction:** {i}\n**{n}. Input:** {x}\n**{n}. Output:** {o}\n\n",
    "### Task {n}\nInstruction: {i}\nInput: {x}\nOutput: {o}\n\n",
    "{n}) Input: {x}\n{n}) Instruction: {i}\n{n}) Output: {o}\n",
]
HAN_SHAPES = [
    "{n}. 指令：{i}\n{n}. 输入：\n{x}\n{n}. 输出：\n{o}\n###\n",
    "任务{n}：\n指令：{i}\n输入：{x}\n输出：{o}\n\n",
    "**指令{n}**：{i}\n**输入{n}**：{x}\n**输出{n}**：{o}\n\n",
]


def is_chinese(text: str) -> bool:
    return "中文" in text


def answer(messages: list, faults: float = 0.4) -> str:
    """The answer to the messages. faults: share of tasks that filters should drop."""
    text = messages[-1]["content"]
    rng, chinese = random.Random(text), is_chinese(text)
    if '"Input:"' in text or "“输入：”" in text:
        return f"输入：<无输入>\n输出：{rng.random()}" if chinese else f"Input: {rng.random()}\nOutput: {rng.random()}"
    if not (shown := re.findall(r"^(\d+)\. ", text, re.MULTILINE)):
        return f"{rng.random()}"  # the answer to an instruction as it stands
    first = max(map(int, shown))
    shape = rng.choice(HAN_SHAPES if chinese else SHAPES)
    if "指令：" not in text and "Instruction:" not in text:
        shape = "{n}. {i}\n"
    made = []
    for n in range(first + 1, first + 1 + rng.randrange(3, 7)):
        i = instruction(rng, chinese)
        if rng.random() < faults:
            i = rng.choice(["画一只猫", "好"] if chinese else ["Draw a picture of a cat.", "Go", "- sort them all now"])
        x = rng.choice(["<无输入>", "无", "一二三"] if chinese else ["<noinput>", "None", "3, 1, 2"])
        made.append(shape.format(n=n, i=i, x=x, o=f"{rng.randrange(10**6)}\n1. x = input('Input: ')"))
    return rng.choice(["", "Sure! Here they are:\n\n"]) + "".join(made)


def write_seeds(path, language: str, count: int = 10) -> None:
    """Writes seed tasks as Alpaca records."""
    rng = random.Random(language)
    tasks = [{"instruction": instruction(rng, language == "zh"), "input": "", "output": "x"} for _ in range(count)]
    path.write_text("\n".join(json.dumps(task, ensure_ascii=False) for task in tasks), encoding="utf-8")


def instruction(rng: random.Random, chinese: bool) -> str:
    if chinese:
        nouns = rng.sample(HAN_NOUNS, 3)
        return f"{rng.choice(HAN_VERBS)}{nouns[0]}和{nouns[1]}的{nouns[2]}{rng.randrange(100)}"
    nouns = rng.sample(NOUNS, 4)
    return f"{rng.choice(VERBS)} {nouns[0]} and {nouns[1]} for {rng.randrange(100)} {nouns[2]} near {nouns[3]}."


class Teacher:
    """An `Asker` in memory."""

    name = "simulated"

    def __init__(self, write=answer, finish=lambda text: "stop"):
        self.write, self.finish, self.asked = write, finish, []

    def key(self, request):
        return key_of(self.name, request)

    def ask(self, requests):
        self.asked += [self.key(request) for request in requests]
        replies = []
        for request in requests:
            text = self.write(request.messages)
            replies.append(Reply(text, self.finish(text), 100, len(text)))
        return replies
