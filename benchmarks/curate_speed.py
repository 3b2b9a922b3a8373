"""Measures the speed of the data engine: each stage of a config on some cores, and each of its row steps alone.

    python -m camelid.benchmarks.curate_speed --config=configs/curate/text.py --source=c4.jsonl --copies=40 --workers=2

Speed is in MB/s: 10^6 bytes of UTF-8 of the texts of the rows, by the wall clock for stages of a run, and by CPU time,
added up over processes, for a step alone. `--copies` makes the input larger: each record is written several times, and
the words of its lines are put in another order, so that the copies are no duplicates. A step alone is fed with the rows
that reach it in the order of the config.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from camelid.curate.measure import text_of_any
from camelid.curate.pipeline import run
from camelid.curate.rows import Rejected, Row
from camelid.curate.settings import (
    CurateConfig,
    CurateSource,
    is_whole,
    named_steps,
    read_config,
    source_of,
    sources_at,
)
from camelid.curate.showing import sample_of
from camelid.curate.workers import Workers
from camelid.data.sources import raw_rows
from camelid.settings.config_files import load_config


def copies_of(sources: list[str], copies: int, path: Path) -> None:
    """Writes the records of sources, and copies of them with their words in another order, into a file."""
    rng = random.Random(0)
    config = CurateConfig(sources={name: CurateSource(**section) for name, section in sources_at(sources).items()})
    with path.open("w", encoding="utf-8") as file:
        for name in config.sources:
            for _, raw in raw_rows(source_of(config, name)):
                for copy in range(copies):
                    file.write(json.dumps(_shuffled(raw, rng) if copy else raw, ensure_ascii=False) + "\n")


def _shuffled(value: Any, rng: random.Random) -> Any:
    """A raw record with the lines of its texts, and the words of each line, in another order."""
    if isinstance(value, dict):
        return {name: _shuffled(item, rng) for name, item in value.items()}
    if isinstance(value, list):
        return [_shuffled(item, rng) for item in value]
    if not isinstance(value, str) or len(value) < 30:
        return value
    lines = [re.findall(r"\S+\s*|\s+", line) for line in value.splitlines(keepends=True)]
    return "".join("".join(rng.sample(words, len(words))) for words in rng.sample(lines, len(lines)))


def megabytes(rows: list[Row]) -> float:
    """The UTF-8 bytes of the texts of rows, in units of 10^6."""
    return sum(len(text_of_any(row.record).encode(errors="replace")) for row in rows) / 1e6


def nothing() -> None:
    """Begins a worker process."""


def time_steps(config: CurateConfig, rows: list[Row]) -> list[tuple[str, float, float]]:
    """(name, megabytes, CPU seconds) of each row step of a config, without the time in which it loads what it needs."""
    found = []
    for name, step in named_steps(config):
        if is_whole(step):
            continue
        for row in rows[:20]:  # loads models and word lists
            step(row)
        size, begin = megabytes(rows), time.process_time()
        results = [step(row) for row in rows]
        found.append((name, size, time.process_time() - begin))
        rows = [
            each
            for result in results
            if not isinstance(result, Rejected)
            for each in ([result] if isinstance(result, Row) else result)
        ]
    return found


def stage_seconds(config: CurateConfig, workers: int) -> Iterator[tuple[str, float]]:
    """(name, seconds) of each stage of a run, and of what the run does besides: start, hashes and writing."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        run(config, Path(folder) / "out", workers=workers, tell=lines.append)
        total = time.perf_counter() - begin
    stages = [re.fullmatch(r"stage \d+ of \d+, (.*): \d+ of \d+ parts, (.*) s", line).groups() for line in lines]
    yield from ((name, float(seconds)) for name, seconds in stages)
    yield "hashing the input and writing the output", total - sum(float(seconds) for _, seconds in stages)
    yield "all", total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--source", action="append", required=True)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4000, help="rows by which each step is measured alone")
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "records.jsonl"
        copies_of(args.source, args.copies, source)
        config = load_config(args.config, overrides)
        with config.unlocked():
            config.sources = sources_at([str(source)])
        config = read_config(config)
        rows = sample_of(config, args.rows)
        everything = megabytes(sample_of(config, 10**9))
        print(f"{everything:.1f} MB of text, {source.stat().st_size / 1e6:.1f} MB of JSON, {args.workers} processes")
        for name, seconds in stage_seconds(config, args.workers):
            speed = f"{everything / seconds:8.2f}" if seconds else f"{'-':>8}"  # stages tell tenths of a second
            print(f"{name:60} {seconds:7.1f} s {speed} MB/s of the input", flush=True)
        parts = [(config, rows[number :: args.workers]) for number in range(args.workers)]
        with Workers(args.workers, nothing) as pool:
            measured = list(pool.map(time_steps, parts))
        print(f"each row step alone, {len(rows):,} rows, {args.workers} processes")
        for steps in zip(*measured, strict=True):
            print(f"{steps[0][0]:60} {sum(size / seconds for _, size, seconds in steps):18.2f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
