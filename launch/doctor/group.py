"""Checks of several processes together, and the findings of all of them in one list."""

import json
import socket
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from .finding import Finding

SKEW = 1.0
"""Seconds between the clocks of two hosts from which on it is told."""
ROUNDS = 10


def check_group() -> Iterator[Finding]:
    """The hosts of the processes, the time of an exchange between all of them, and the difference of their clocks."""
    hosts = [text for text in _gather(socket.gethostname()) if text]
    count = len(set(hosts))
    times, exchanges = [], []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        times.append(_gather(repr(time.time())))
        exchanges.append(time.perf_counter() - begin)
    quickest = exchanges.index(min(exchanges))
    where = f"{len(hosts)} processes on {count} host{'s' * (count != 1)}"
    text = f"{where}, {min(exchanges) * 1000:.1f} ms for an exchange of all"
    yield Finding("network", "ok", text)
    clocks = [float(clock) for clock in times[quickest]]
    skew = max(clocks) - min(clocks)
    status = "ok" if skew < SKEW + min(exchanges) else "warn"
    advice = "" if status == "ok" else "synchronise the clocks of all hosts (NTP): heartbeats and logs disagree"
    yield Finding("clock", status, f"at most {skew:.2f} s between the processes", advice)


def gather(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of this process, and those of the others that are not ok, with their hosts."""
    words = json.dumps([finding for finding in findings if finding.status != "ok"])
    everyone = _gather(f"{socket.gethostname()} {words}")
    hosts = [text.partition(" ")[0] for text in everyone]
    merged, told = list(findings), {(hosts[jax.process_index()], each.check, each.text) for each in findings}
    for number, text in enumerate(everyone):
        for found in (Finding(*each) for each in json.loads(text.partition(" ")[2])):
            key = (hosts[number], found.check, found.text)
            if number != jax.process_index() and key not in told:  # processes of one host find the same
                merged.append(found._replace(host=f"{hosts[number]} (process {number})"))
                told.add(key)
    return merged


def _gather(text: str) -> list[str]:
    """A text of each process, in the order of their numbers, in all processes."""
    content = text.encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(content))).max())
    padded = np.zeros(longest + 1, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row).rstrip(b"\0").decode() for row in np.atleast_2d(rows)]
