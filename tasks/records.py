"""How the tasks draw and write their records."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from random import Random

SPLITS = ("train", "heldout")


def random_of(*names: object) -> Random:
    """Random numbers for what the names name, the same on every machine."""
    return Random(int.from_bytes(blake2b("/".join(map(str, names)).encode(), digest_size=16).digest()))


def position(text: str) -> float:
    """Where a text stands in [0, 1), by a hash: of all texts a fraction p lies below p."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def chat(prompt: str, answer: str, **meta: object) -> dict:
    """The chat record of a prompt and its answer."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"kind": "chat", "messages": messages, "meta": meta}


def preference(prompt: str, chosen: str, rejected: str, *, labels: dict | None = None, **meta: object) -> dict:
    """The preference record of two answers. labels: further fields of the record, such as margin and safer."""
    return {
        "kind": "preference",
        "messages": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **(labels or {}),
        **({"meta": meta} if meta else {}),
    }


def prompt_text(record: dict) -> str:
    """The text of a prompt's last message."""
    return record["messages"][-1]["content"].strip()


def distinct(records: Iterable[dict]) -> Iterator[dict]:
    """Chat records without those whose prompt an earlier record has."""
    seen = set()
    for record in records:
        if (prompt := record["messages"][0]["content"]) not in seen:
            seen.add(prompt)
            yield record
