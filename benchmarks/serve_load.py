"""Load on a server of OpenAI's protocol: clients that ask one request after the other, or requests at random moments.

    camelid serve model.gguf --max_len=2048 &
    python benchmarks/serve_load.py http://127.0.0.1:8000/v1 --clients 1 4 8 --rates 0.5 1

Requests are streams of `/completions`, with prompts of 16 to 256 random words and answers of 16 to 128 tokens. A
request depends on the seed, the client and its number alone, so that several servers are asked the same. A load
runs for a warm-up and a window. Only what happens in the window counts for rates; requests that are unfinished at its
end are cancelled, and count as censored observations in percentiles of latencies (Kaplan and Meier 1958).
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

WORDS = ("the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "with")
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
COLUMNS = (
    "completed", "failed", "unfinished", "requests/s", "tokens/s", "first token, s", "time per token, ms",
    "inter-token, ms", "whole, s", "goodput, requests/s",
)  # fmt: skip
"""Columns of `row`. Latencies are the 50th and the 99th percentile."""


class Load(NamedTuple):
    """What is asked of a server at a time."""

    clients: int = 0
    """Number of clients that ask again as soon as they are answered (closed loop); 0 for an open loop."""

    rate: float = 0.0
    """Requests per second, at the moments of a Poisson process, whatever the others take (open loop)."""

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s" if self.rate else f"{self.clients} client{'s' * (self.clients > 1)}"


@dataclasses.dataclass
class Asked:
    """A request, with moments in seconds of `time.monotonic`."""

    begin: float
    """When it was sent."""

    times: list[float] = dataclasses.field(default_factory=list)
    """When each token with text came; of an answer in UTF-8 parts, when each complete character came."""

    end: float | None = None
    """When it was answered, or failed; None if it was cancelled before."""

    failed: bool = False
    """Whether the server refused it or broke off."""


class Window(NamedTuple):
    """What a load found."""

    begin: float
    """When the warm-up had ended."""

    end: float
    """When the load ended."""

    asked: list[Asked]
    """All requests, also those of the warm-up."""

    cpu: float = math.nan
    """CPU seconds of the server in the window."""

    others: float = math.nan
    """CPUs that other processes than server and clients used in the window."""

    @property
    def tokens(self) -> int:
        """Tokens that were written in the window."""
        return sum(self.begin <= moment < self.end for each in self.asked for moment in each.times)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were written in the window, per second."""
        return self.tokens / (self.end - self.begin)

    def completed(self) -> list[Asked]:
        """The requests that were answered in the window."""
        return [each for each in self.asked if each.end and each.end >= self.begin and not each.failed]


class Limits(NamedTuple):
    """What an answer has to keep in order to count for goodput."""

    first: float = 2.0
    """Most seconds to the first token."""

    between: float = 0.15
    """Most seconds between two tokens, in the mean over the answer."""

    def kept(self, each: Asked) -> bool:
        """Whether an answer keeps the limits."""
        count = len(each.times)
        return bool(count) and (
            each.times[0] - each.begin <= self.first
            and each.times[-1] - each.times[0] <= self.between * max(count - 1, 1)
        )


def text(rng: np.random.Generator, words: int) -> str:
    """A text of random words, of about a token each."""
    return " ".join(rng.choice(WORDS, words))


def body_of(seed: int, client: int, number: int) -> dict[str, Any]:
    """A request."""
    rng = np.random.default_rng([seed, client, number])
    prompt, tokens = text(rng, rng.integers(16, 257)), int(rng.integers(16, 129))
    return {"prompt": prompt, "max_tokens": tokens, "seed": int(rng.integers(2**31))} | SAMPLING


async def ask(http: httpx.AsyncClient, model: str, body: dict[str, Any], asked: list[Asked]) -> Asked:
    """Asks one request. asked: where it is noted, also if it is cancelled."""
    each = Asked(time.monotonic())
    asked.append(each)
    try:
        async with http.stream("POST", "completions", json={"model": model, "stream": True} | body) as response:
            each.failed = response.status_code != 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    each.failed |= "error" in event
                    if event.get("choices") and event["choices"][0]["text"]:
                        each.times.append(time.monotonic())
    except httpx.HTTPError:
        each.failed = True
    each.end = time.monotonic()
    return each


def connect(url: str) -> httpx.AsyncClient:
    """A client of a server, with as many connections as are needed. url: address with /v1."""
    return httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))


async def run(
    url: str,
    model: str,
    load: Load,
    seconds: float,
    warmup: float,
    seed: int,
    used: Callable[[], tuple[float, float]] = lambda: (math.nan, math.nan),
) -> Window:
    """Runs a load.

    Args:
      url: address of the server, with /v1.
      model: its name for clients.
      load: the load. The clients of a closed loop begin one after the other during the warm-up.
      seconds: length of the window.
      warmup: seconds before it.
      seed: seed of the requests and their moments.
      used: returns the CPU seconds that the server, and that other processes have used so far.
    """
    asked, before = [], []
    async with connect(url) as http:

        async def closed(client: int) -> None:
            await asyncio.sleep(warmup * client / load.clients)
            for number in range(2**31):
                if (await ask(http, model, body_of(seed, client, number), asked)).failed:
                    await asyncio.sleep(0.1)

        async def opened() -> None:
            rng = np.random.default_rng(seed)
            async with asyncio.TaskGroup() as tasks:
                for number in range(2**31):
                    tasks.create_task(ask(http, model, body_of(seed, 0, number), asked))
                    await asyncio.sleep(rng.exponential(1 / load.rate))

        asyncio.get_running_loop().call_later(warmup, lambda: before.extend((time.monotonic(), *used())))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(warmup + seconds):
                await asyncio.gather(*([opened()] if load.rate else map(closed, range(load.clients))))
        end, (cpu, others) = time.monotonic(), used()
        await (await http.post("completions", json={"model": model, "prompt": "the", "max_tokens": 1})).aread()
    begin, *was = before
    return Window(begin, end, asked, cpu - was[0], (others - was[1]) / (end - begin))


def percentile(values: Sequence[float], censored: Sequence[bool], share: float) -> tuple[float, bool]:
    """A percentile of values of which some are known to be larger than observed (the Kaplan-Meier estimator).

    Args:
      values: the observations, at least one.
      censored: whether the value is larger than what was observed.
      share: the percentile, from 0 to 1.

    Returns:
      The percentile, and whether it is only known to be larger than that.
    """
    order = np.argsort(values)
    known = ~np.asarray(censored)[order]
    survival = np.cumprod(1 - known / np.arange(len(order), 0, -1))
    below = np.flatnonzero(survival <= 1 - share + 1e-9)
    return (float(values[order[below[0]]]), False) if len(below) else (float(np.max(values)), True)


def both(values: Sequence[float], censored: Sequence[bool] | None = None, unit: float = 1.0, digits: int = 2) -> str:
    """The 50th and the 99th percentile as text, in seconds over `unit`."""
    if not len(values):
        return ""
    found = [percentile(values, censored or [False] * len(values), share) for share in (0.5, 0.99)]
    return " / ".join(f"{'>' * larger}{value / unit:.{digits}f}" for value, larger in found)


def row(windows: Sequence[Window], limits: Limits) -> list[str]:
    """The columns `COLUMNS` of a table, over all windows of a load."""
    asked = [(each, window.end) for window in windows for each in window.asked if not each.failed]
    done = [each for window in windows for each in window.completed()]
    seconds = sum(window.end - window.begin for window in windows)
    first = [(each.times[0] if each.times else end) - each.begin for each, end in asked]
    whole = [(each.end or end) - each.begin for each, end in asked]
    per_token = [(each.times[-1] - each.times[0]) / (len(each.times) - 1) for each in done if len(each.times) > 1]
    return [
        f"{len(done)}",
        f"{sum(each.failed for window in windows for each in window.asked)}",
        f"{sum(each.end is None for each, _ in asked)}",
        f"{len(done) / seconds:.2f}",
        f"{np.median([window.tokens_per_second for window in windows]):.1f}",
        both(first, [not each.times for each, _ in asked]),
        both(per_token, unit=1e-3, digits=0),
        both([gap for each, _ in asked for gap in np.diff(each.times)], unit=1e-3, digits=0),
        both(whole, [each.end is None for each, _ in asked], digits=1),
        f"{sum(map(limits.kept, done)) / seconds:.2f}",
    ]


def add_arguments(parser: argparse.ArgumentParser, clients: Sequence[int] = (), rates: Sequence[float] = ()) -> None:
    """Adds the options of loads."""
    parser.add_argument("--clients", type=int, nargs="*", default=clients, help="numbers of clients, a load for each")
    parser.add_argument("--rates", type=float, nargs="*", default=rates, help="requests per second, a load for each")
    parser.add_argument("--seconds", type=float, default=8, help="seconds of each window (default: 8)")
    parser.add_argument("--warmup", type=float, default=4, help="seconds before each window (default: 4)")
    parser.add_argument("--first_limit", type=float, default=Limits().first, help="of goodput, seconds (default: 2)")
    parser.add_argument("--between_limit", type=float, default=Limits().between, help="the same (default: 0.15)")


def loads_of(args: argparse.Namespace) -> list[Load]:
    """The loads that the options name."""
    return [*(Load(clients=n) for n in args.clients), *(Load(rate=rate) for rate in args.rates)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server, with /v1")
    parser.add_argument("--model", help="name of the model (default: the first that the server lists)")
    add_arguments(parser)
    args = parser.parse_args()
    model = args.model or httpx.get(f"{args.url}/models").json()["data"][0]["id"]
    table = Table("load", *COLUMNS)
    for load in loads_of(args):
        window = asyncio.run(run(args.url, model, load, args.seconds, args.warmup, seed=0))
        table.add_row(str(load), *row([window], Limits(args.first_limit, args.between_limit)))
    Console().print(table)


if __name__ == "__main__":
    main()
