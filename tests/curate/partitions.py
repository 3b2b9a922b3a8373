"""All rows of a step in memory, in partitions, as `curate.rows.Rows` has them."""

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from camelid.curate.rows import Rejected, Row


class Partitions:
    """Rows in the order of their ids."""

    def __init__(self, rows: Iterable[Row], folder: Path, count: int = 1):
        self.rows = sorted(rows, key=lambda row: row.id)
        self.folder, self.workers, self.count = folder, 1, count
        folder.mkdir(exist_ok=True)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def map(self, function: Callable) -> Iterator:
        size = max(-(-len(self.rows) // self.count), 1)
        for start in range(0, len(self.rows), size):
            yield function(iter(self.rows[start : start + size]))


def text_row(id: str, text: str) -> Row:
    """A row with a text."""
    return Row(id, {"kind": "text", "text": text}, "source", "place")


def chat_row(id: str, *turns: str, **fields) -> Row:
    """A row with a conversation whose turns are those of the user and the assistant by turns."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return Row(id, {"kind": "chat" if len(turns) % 2 == 0 else "prompt", "messages": messages, **fields}, "s", "p")


def rejected(step, rows: Iterable[Row], folder: Path, count: int = 1) -> dict[str, Rejected]:
    """What a step rejects, by id. The rows come to it in partitions, whatever order they are given in."""
    rows = list(rows)
    random.Random(count).shuffle(rows)
    found = list(step.decide(Partitions(rows, folder, count)))
    assert len(dict(found)) == len(found)
    return dict(found)
