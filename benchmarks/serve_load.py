"""Load on a server of OpenAI's protocol: clients that ask one request after the other, or requests at random moments.

    camelid serve model.gguf --max_len=2048 &
    python benchmarks/serve_load.py http://127.0.0.1:8000/v1 --clients 1 4 8
    python benchmarks/serve_load.py http://127.0.0.1:8000/v1 --rates 0.5 1

Prompts of 16 to 256 tokens and answers of 16 to 128, both of random lengths, are asked as streams of `/completions`.
The table has, for each load, the requests that ended and that failed, tokens per second, and the 50th and 99th
percentile of the seconds to the first token, between tokens, and of whole requests.
"""

import argparse
import asyncio
import json
import time
from typing import NamedTuple

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

WORDS = (
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "they",
)


class Ended(NamedTuple):
    """A request that ended."""

    begin: float
    times: list[float]
    """When each piece of the answer came."""


async def ask(client: httpx.AsyncClient, url: str, model: str, rng: np.random.Generator) -> Ended | None:
    """Asks one request. None if it failed."""
    prompt = " ".join(rng.choice(WORDS, rng.integers(16, 257)))
    body = {"model": model, "prompt": prompt, "max_tokens": int(rng.integers(16, 129)), "temperature": 0.8}
    begin, times = time.monotonic(), []
    try:
        async with client.stream("POST", f"{url}/completions", json=body | {"stream": True, "seed": 1}) as response:
            if response.status_code != 200:
                return None
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    if "error" in json.loads(line[6:]):
                        return None
                    times.append(time.monotonic())
    except httpx.HTTPError:
        return None
    return Ended(begin, times) if times else None


async def closed_loop(url: str, model: str, clients: int, seconds: float) -> list[Ended | None]:
    """Clients that ask again as soon as they are answered."""
    until, found = time.monotonic() + seconds, []

    async def one(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < until:
            found.append(await ask(client, url, model, rng))

    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(i) for i in range(clients)))
    return found


async def open_loop(url: str, model: str, rate: float, seconds: float) -> list[Ended | None]:
    """Requests at the moments of a Poisson process, however long the others take."""
    rng, tasks = np.random.default_rng(0), []
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            tasks.append(asyncio.ensure_future(ask(client, url, model, np.random.default_rng(len(tasks)))))
            await asyncio.sleep(rng.exponential(1 / rate))
        return list(await asyncio.gather(*tasks))


def percentiles(values: list[float]) -> str:
    """The 50th and the 99th percentile."""
    return " / ".join(f"{x:.2f}" for x in np.percentile(values, [50, 99])) if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server, with /v1")
    parser.add_argument("--model", help="name of the model (default: the first that the server lists)")
    parser.add_argument("--clients", type=int, nargs="*", default=[], help="numbers of clients, one load for each")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests per second, one load for each")
    parser.add_argument("--seconds", type=float, default=60, help="length of each load (default: 60)")
    args = parser.parse_args()
    model = args.model or httpx.get(f"{args.url}/models").json()["data"][0]["id"]
    table = Table("load", "ended", "failed", "requests/s", "tokens/s", "first token, s", "between, s", "whole, s")
    loads = [(f"{n} clients", closed_loop(args.url, model, n, args.seconds)) for n in args.clients]
    loads += [(f"{rate:g} requests/s", open_loop(args.url, model, rate, args.seconds)) for rate in args.rates]
    for name, load in loads:
        begin = time.monotonic()
        found = asyncio.run(load)
        took, ended = time.monotonic() - begin, [each for each in found if each is not None]
        between = [gap for each in ended for gap in np.diff(each.times)]
        table.add_row(
            name,
            str(len(ended)),
            str(len(found) - len(ended)),
            f"{len(ended) / took:.2f}",
            f"{sum(len(each.times) for each in ended) / took:.1f}",
            percentiles([each.times[0] - each.begin for each in ended]),
            percentiles(between),
            percentiles([each.times[-1] - each.begin for each in ended]),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
