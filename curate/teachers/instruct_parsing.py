"""Reads the tasks in a teacher's answer, in the many shapes in which models write a numbered list of tasks.

A task has parts: an instruction, an input and an output, each after its label, in any order. Labels are English or
Chinese, bold or not, with an ASCII or full-width colon, each with the task's number before it or under a heading with
the number:

    4. Instruction: Sort the numbers.        ### Task 4                       任务4：
    4. Input: 3, 1, 2                        **Instruction:** Sort ...        指令：给数字排序。
    4. Output: 1, 2, 3                       **Output:** 1, 2, 3              输出：1、2、3

Where labels carry numbers, labels without a number belong to the text, as in a program that prints "Input: 5". A list
of objects in JSON is read too. Every task that begins is returned, whole or with the reason why it cannot be used.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .seeds import Task

REASONS = ("empty_answer", "unreadable", "cut", "no_instruction", "no_output")
"""Reasons why an answer or a task in it cannot be used.

empty_answer: the teacher wrote nothing. unreadable: no part has a label. cut: the answer reached the limit of tokens in
this task. no_instruction, no_output: the part is missing or empty.
"""

CUTS = {"length", "max_tokens", "content_filter"}
"""Finish reasons of answers whose end is missing."""

LABELS = {
    "instruction": (("instruction", "指令"), ("task", "question", "prompt", "指示", "任务", "问题", "题目")),
    "input": (("input", "输入"), ("context", "上下文")),
    "output": (("output", "输出"), ("answer", "response", "回答", "答案", "回复")),
}
"""Labels of the parts of a task. The second ones count only in answers without any of the first ones for that part."""

NO_INPUT = {
    *("noinput", "no input", "none", "n/a", "na", "null", "empty", "not applicable", "no input required"),
    *("no input needed", "无", "无输入", "没有输入", "空", "没有", "不需要输入", "无需输入"),
}
"""What teachers write where a task needs no input, in lower case, without brackets and signs at the ends."""

_PART = {word: part for part, words in LABELS.items() for word in words[0] + words[1]}
_SURE = {word for words in LABELS.values() for word in words[0]}
_NUMBER = r"(?P<number>[0-9０-９]{1,4})"
_BEGIN = r"[\s>#*_\-•【\[]*"  # quote, heading, bold, bullet, bracket
_HEADS = r"task|example|任务|示例|第"
_LABEL = re.compile(
    rf"(?P<begin>{_BEGIN}(?:(?:(?:{_HEADS})\s*+)?#?{_NUMBER}[\s.．、)）:：题】\]*_]*+)?)"
    rf"(?P<label>{'|'.join(sorted(_PART, key=len, reverse=True))})"
    r"(?:\s*+#?(?P<after>[0-9０-９]{1,4}))?\s*+[】\]]?(?P<closed>\*\*|__)?\s*+[:：](?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_HEADING = re.compile(
    rf"{_BEGIN}(?:(?:(?:{_HEADS})\s*+#?\s*+{_NUMBER}[\s题】\].．、)）:：*_-]*+(?P<title>.*))"
    rf"|(?:{_NUMBER.replace('number', 'bare')}[\s】\].．、)）:：*_]*+))$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(rf"[\s>#*_\-]*{_NUMBER}\s*+[.．、)）:：][\s*_]*(?P<rest>\S.*)", re.DOTALL)
_SEPARATOR = re.compile(r"\s*(?:#{2,}|-{3,}|={3,}|\*{3,}|_{3,})\s*$")

_CLOSING = re.compile(
    r"(?:(?:I |We )?hope (?:that )?(?:these|this|the)\b[^.!?]{0,60}"
    r"|(?:Please )?let me know if you\b[^.!?]{0,30}\b(?:more|additional|further|other|any|changes)\b[^.!?]{0,60}"
    r"|(?:These|The above|Above) (?:are|were)\b[^.!?]{0,60}"
    r")\b(?:tasks|instructions)\b.*"
    r"|(?:希望(?:这些|以上|上述)|(?:以上|这些)(?:就?是|为)|如果?[您你]?(?:还|需要|想要){1,2}(?:更多|其他|其它)).{0,30}(?:任务|指令).*",
    re.IGNORECASE,
)
"""What a teacher says about the tasks behind the last one."""


@dataclass(frozen=True)
class Candidate:
    """A task in an answer."""

    task: Task
    """What was read of it."""

    reason: str = ""
    """One of REASONS if it cannot be used."""

    detail: str = ""
    """What was found, for people who look at it."""


def parse_tasks(text: str, finish_reason: str = "stop") -> list[Candidate]:
    """The tasks in a teacher's answer, in their order; at least one candidate, so that no answer goes uncounted.

    Args:
      text: the answer.
      finish_reason: why it ended. After one of CUTS, the last task is not used.
    """
    cut = finish_reason in CUTS
    if not text.strip():
        return [Candidate(Task(""), "cut" if cut else "empty_answer", f"finish_reason {finish_reason or 'unknown'}")]
    parts = _json_tasks(text) or [_joined(lines) for lines in _tasks(text)]
    if len(parts) > 1 and "output" in parts[-1]:
        parts[-1]["output"] = _without_closing(parts[-1]["output"])
    if not parts:
        return [Candidate(Task(""), "cut" if cut else "unreadable", " ".join(text.split())[:200])]
    found = [_candidate(part) for part in parts]
    if cut:
        found[-1] = replace(found[-1], reason="cut", detail=f"finish_reason {finish_reason}")
    return found


def parse_instructions(text: str, finish_reason: str = "stop") -> list[Candidate]:
    """The instructions in an answer that is a numbered list of instructions alone, as `parse_tasks` returns tasks."""
    if _labels(text.split("\n")):
        found = parse_tasks(text, finish_reason)
        return [replace(each, reason="", detail="") if each.reason == "no_output" else each for each in found]
    cut, items, last = finish_reason in CUTS, [], None
    for line in text.split("\n"):
        match = _NUMBERED.match(line)
        if match and last in (None, int(match["number"]) - 1) and not line.startswith("   "):
            items.append([match["rest"]])
            last = int(match["number"])
        elif items:
            items[-1].append(line)
    if not items:
        return parse_tasks("" if not text.strip() else text, finish_reason)
    texts = [_clean("\n".join(item)) for item in items]
    found = [Candidate(Task(each), "" if each else "no_instruction") for each in texts]
    if cut:
        found[-1] = replace(found[-1], reason="cut", detail=f"finish_reason {finish_reason}")
    return found


def parse_instance(instruction: str, text: str, finish_reason: str = "stop") -> Candidate:
    """The task of an instruction and an answer with its input and output."""
    if not text.strip():
        return replace(parse_tasks(text, finish_reason)[0], task=Task(instruction))
    found = parse_tasks(f"Instruction: {instruction}\n{text}", finish_reason)[0]
    return replace(found, task=replace(found.task, instruction=instruction))


def parse_answer(instruction: str, text: str, finish_reason: str = "stop") -> Candidate:
    """The task of an instruction without an input, and an answer that is its output as it stands."""
    task, said = Task(instruction, "", text.strip()), f"finish_reason {finish_reason or 'unknown'}"
    if finish_reason in CUTS:
        return Candidate(task, "cut", said)
    return Candidate(task) if task.output else Candidate(task, "empty_answer", said)


def _candidate(parts: dict[str, str]) -> Candidate:
    """The task of the texts of its parts."""
    task = Task(*(_clean(parts.get(name, "")) for name in LABELS))
    if is_no_input(task.input):
        task = replace(task, input="")
    reason = "" if task.instruction and task.output else "no_output" if task.instruction else "no_instruction"
    return Candidate(task, reason)


def is_no_input(text: str) -> bool:
    """Whether the text of an input says that there is none."""
    return text.strip(" \n\t<>()[]{}（）【】《》「」\"'`*_-.。…/").lower() in NO_INPUT | {""}


def _tasks(text: str) -> Iterator[dict[str, list[str]]]:
    """The lines of each part of each task that begins in a text."""
    lines = text.split("\n")
    labels = _labels(lines)
    after = _next_labels(len(lines), labels)
    numbered = sum(label["number"] is not None for label in labels.values()) * 2 > len(labels)
    task: dict[str, list[str]] = {}
    number, part = None, None
    for i, line in enumerate(lines):
        label = labels.get(i)
        if label and _begins_part(label, numbered, number, task):
            given = label["number"]
            new = label["part"] in task or (numbered and _is_next(label, labels.values(), number))
            if task and new:
                yield task
                task = {}
            number, part = (given if given is not None else number), label["part"]
            task[part] = [label["rest"]]
        elif (begun := _unlabelled(lines, labels, after[i], i, number, task)) is not None:
            if task:
                yield task
            number, rest = begun
            task, part = ({"instruction": [rest]}, "instruction") if rest else ({}, None)
        elif part is not None and not (label and _is_repeated(label, part, numbered, task)):
            task[part].append(line)
    if task:
        yield task


def _is_next(label: dict, labels: Iterable[dict], number: int | None) -> bool:
    """Whether a label with another number than the task before begins the next task. An input and an output do so only
    if the number has an instruction too; some models count parts, as in "1. Instruction: ... 2. Input: ...".
    """
    if number is None or label["number"] == number:
        return False
    return any(each["part"] == "instruction" and each["number"] == label["number"] for each in labels)


def _begins_part(label: dict, numbered: bool, number: int | None, task: dict[str, list[str]]) -> bool:
    """Whether a label begins a part of a task, and is no text of one."""
    part, given = label["part"], label["number"]
    if numbered:
        if given is None:
            return False
        if number is None or given == number:
            return part not in task or part == "instruction"
        return given == number + 1 or (part == "instruction" and ("output" in task or given > number))
    return part not in task or (part == "instruction" and "output" in task)


def _is_repeated(label: dict, part: str, numbered: bool, task: dict[str, list[str]]) -> bool:
    """Whether a label without text stands again in its own part, with a number or before any text of the part."""
    is_again = label["part"] == part and not label["rest"].strip()
    return is_again and ((numbered and label["number"] is not None) or not any(map(str.strip, task[part])))


def _unlabelled(lines: list[str], labels: dict[int, dict], after: int | None, i: int, number: int | None, task: dict):
    """(number, instruction) of a task that begins in line i without a label, or None if none begins there.

    Such a line is a heading, a separator, or has the instruction after a number, as in "4. Sort the numbers.". Below a
    heading and a separator the label of a part has to follow. A numbered line after an output begins the next task only
    if its number is the next one, and the next label, in line `after`, is that of an input or an output.
    """
    if i in labels or after is None:
        return None
    is_above = not any(line.strip() for line in lines[i + 1 : after])
    if is_above and (heading := _HEADING.match(lines[i])):
        return int(heading["number"] or heading["bare"]), ""
    if is_above and "output" in task and _SEPARATOR.match(lines[i]):
        return number, ""
    if not (match := _NUMBERED.match(lines[i])) or labels[after]["part"] == "instruction":
        return None
    given = int(match["number"])
    if labels[after]["number"] not in (None, given):
        return None
    if task and ("output" not in task or (number is not None and given != number + 1)):
        return None
    numbers = {int(found["number"]) for each in lines[i + 1 : after] if (found := _NUMBERED.match(each))}
    if numbers & {given, given + 1}:
        return None
    return given, match["rest"]


def _labels(lines: list[str]) -> dict[int, dict]:
    """The label in each line that begins with one: its part, its number or None, and the text after it."""
    found, sure = {}, set()
    for i, line in enumerate(lines):
        if match := _LABEL.match(line):
            number, word, rest = match["number"] or match["after"], match["label"].lower(), match["rest"].lstrip(" \t")
            mark = next((mark for mark in ("**", "__") if match["begin"].count(mark) % 2), None)
            if mark and not match["closed"]:
                rest = match["rest"].removeprefix(mark).lstrip(" \t")  # **Output:** text
            found[i] = {"part": _PART[word], "number": int(number) if number else None, "rest": rest, "word": word}
            if word in _SURE:
                sure.add(_PART[word])
    return {i: label for i, label in found.items() if label["word"] in _SURE or label["part"] not in sure}


def _next_labels(count: int, labels: dict[int, dict]) -> list[int | None]:
    """For each of so many lines, the number of the next line after it that begins with a label."""
    found: list[int | None] = [None] * count
    for i in range(count - 2, -1, -1):
        found[i] = i + 1 if i + 1 in labels else found[i + 1]
    return found


def _joined(task: dict[str, list[str]]) -> dict[str, str]:
    return {part: "\n".join(lines) for part, lines in task.items()}


def _without_closing(output: str) -> str:
    """The output of the last task without a last paragraph that speaks of the tasks."""
    lines = _clean(output).split("\n")
    if len(lines) > 2 and not (lines[-2].strip() and not _SEPARATOR.match(lines[-2])) and _CLOSING.match(lines[-1]):
        return "\n".join(lines[:-1])
    return output


def _clean(text: str) -> str:
    """The text of a part without separators, an unpaired code fence and half a bold mark around it."""
    lines = text.split("\n")
    while lines and (not lines[-1].strip() or _SEPARATOR.match(lines[-1]) or _is_unpaired_fence(lines)):
        lines.pop()
    text = "\n".join(line.rstrip() for line in lines).strip()
    return text.removesuffix("**").rstrip() if text.count("**") % 2 else text


def _is_unpaired_fence(lines: list[str]) -> bool:
    """Whether the last line is a code fence that closes nothing."""
    return lines[-1].strip() == "```" and sum(line.lstrip().startswith("```") for line in lines) % 2 == 1


def _json_tasks(text: str) -> list[dict[str, str]]:
    """The parts of each task in an answer that is a list of objects in JSON; [] if it is none."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removesuffix("```").partition("\n")[2]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return []
    return [
        {_PART[name.lower()]: value for name, value in each.items() if name.lower() in _PART and isinstance(value, str)}
        for each in found
    ]
