"""What the forms of reward functions cost: a call for each answer or one for all, and judges that answer after 50 ms.

.venv/bin/python benchmarks/reward_functions.py
"""

import argparse
import asyncio
import time

from camelid.rlhf.reward_functions import RewardFunction, of_callable, score_all

LATENCY = 0.05
"""Seconds until a judge behind a network answers."""


def exact(record, answer):
    return answer == record["reference"]


def exact_of_all(records, answers):
    return [answer == record["reference"] for record, answer in zip(records, answers, strict=True)]


def judge(record, answer):
    time.sleep(LATENCY)
    return 1.0


async def async_judge(record, answer):
    await asyncio.sleep(LATENCY)
    return 1.0


def seconds(function: RewardFunction, count: int, repeats: int) -> float:
    """The least seconds of `repeats` steps of `count` answers."""
    record = {"messages": [{"role": "user", "content": "Who lives in the castle?"}], "reference": "A fox.", "meta": {}}
    records, answers = [record] * count, ["A fox."] * count
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        score_all({"reward": function}, records, answers)
        taken.append(time.perf_counter() - begin)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=512, help="number of answers of a step (default: 512)")
    count = parser.parse_args().answers
    for name, function, repeats in (
        ("a call for each answer", exact, 20),
        ("a call for all answers", exact_of_all, 20),
        ("a judge of 50 ms, one call after the other", judge, 1),
        ("a judge of 50 ms, async, limit 32", async_judge, 3),
    ):
        print(f"{name}: {1000 * seconds(of_callable(function, name), count, repeats):,.1f} ms for {count} answers")


if __name__ == "__main__":
    main()
