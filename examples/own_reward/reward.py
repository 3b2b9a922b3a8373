"""Rewards of the primer's questions. `record["reference"]` is the answer in the data."""

import re
from collections import Counter


def words(text: str) -> Counter:
    """The words of a text and how often each occurs; a Chinese character is a word."""
    return Counter(re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower()))


def overlap(record: dict, answer: str) -> float:
    """F1 of the answer's words beside those of the reference, from 0 to 1.

    Called for each answer. Parts of an answer count, so that a model that is never quite right has something to climb.
    """
    given, expected = words(answer), words(record["reference"])
    shared = sum((given & expected).values())
    return 2 * shared / max(1, sum(given.values()) + sum(expected.values()))


def shorter(records: list[dict], answers: list[str]) -> list[float]:
    """The share of the other answers to the same prompt that are longer than this one, from 0 to 1.

    Called once for all answers of a step, because an answer is compared with others.
    """
    prompts = [record["messages"][-1]["content"] for record in records]
    lengths = {prompt: [] for prompt in prompts}
    for prompt, answer in zip(prompts, answers, strict=True):
        lengths[prompt].append(len(answer))
    return [
        sum(other > len(answer) for other in lengths[prompt]) / max(1, len(lengths[prompt]) - 1)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
