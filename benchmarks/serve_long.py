"""The inter-token time of running streams while a long prompt arrives, a part of `serve_compare.py`."""

import asyncio
import itertools
import time
from typing import NamedTuple

import numpy as np
from serve_load import SAMPLING, Asked, ask, connect, text
from serve_servers import Server


class Arrival(NamedTuple):
    """What the arrival of a long prompt did, in seconds."""

    without: list[float]
    """Times between two tokens of a stream before it arrived."""

    during: list[float]
    """The same from its arrival to its first token; those that had not ended count with what they had lasted."""

    first: float
    """Time to the long prompt's first token."""


async def arrival(server: Server, streams: int, words: int, seconds: float, seed: int) -> Arrival:
    """Lets a long prompt arrive while others are answered.

    Args:
      server: the server.
      streams: number of streams that are running.
      words: words of the long prompt.
      seconds: how long the streams run before it arrives.
      seed: seed of the prompts.
    """
    rng, asked, long = np.random.default_rng([seed, words]), [], []
    async with connect(server.url) as http:

        async def stream(number: int) -> None:
            for turn in range(2**31):
                body = {"prompt": text(np.random.default_rng([seed, number, turn]), 16), "max_tokens": 400, "seed": 1}
                await ask(http, server.model, body | SAMPLING, asked)

        tasks = [asyncio.create_task(stream(number)) for number in range(streams)]
        await asyncio.sleep(2 + seconds)
        arrived = time.monotonic()
        body = {"prompt": text(rng, words), "max_tokens": 1, "seed": 1} | SAMPLING
        each = await ask(http, server.model, body, long)
        if each.failed or not each.times:
            raise SystemExit(f"{server.name} did not answer a prompt of {words} words")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await http.post("completions", json={"model": server.model, "prompt": "the", "max_tokens": 1})
    return Arrival(
        gaps(asked, arrived - seconds, arrived), gaps(asked, arrived, each.times[0]), each.times[0] - arrived
    )


def gaps(asked: list[Asked], begin: float, end: float) -> list[float]:
    """Times between two tokens of an answer that ended between two moments, or had not ended at the second one."""
    found = []
    for each in asked:
        times = [moment for moment in each.times if moment <= end]
        times += [end] if times and (each.end is None or each.end > end) else []
        found += [b - a for a, b in itertools.pairwise(times) if b > begin]
    return found
