"""Functions that tasks share to draw and to write their records."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from random import Random

SPLITS = ("train", "heldout")


def seeded_random(*names: object) -> Random:
    """A random number generator seeded by the hash of `names`, the same on every machine."""
    return Random(int.from_bytes(blake2b("/".join(map(str, names)).encode(), digest_size=16).digest()))


def hash_fraction(text: str) -> float:
    """A hash of `text`, scaled to [0, 1): a share p of all texts lies below p."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def chat(prompt: str, answer: str, **meta: object) -> dict:
    """The chat record of a prompt and its answer; `meta` becomes its field meta."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"kind": "chat", "messages": messages, "meta": meta}


def preference(prompt: str, chosen: str, rejected: str, *, labels: dict | None = None, **meta: object) -> dict:
    """The preference record of two answers to one prompt.

    Args:
      prompt: the text of the prompt.
      chosen: the text of the preferred answer.
      rejected: the text of the other answer.
      labels: further fields of the record, such as margin and safer.
      meta: the fields of meta.
    """
    return {
        "kind": "preference",
        "messages": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **(labels or {}),
        **({"meta": meta} if meta else {}),
    }


def prompt_text(record: dict) -> str:
    """The text of the last message of a record, without white space around it."""
    return record["messages"][-1]["content"].strip()


def distinct(records: Iterable[dict]) -> Iterator[dict]:
    """The chat records whose first message differs from that of every earlier record."""
    seen = set()
    for record in records:
        if (prompt := record["messages"][0]["content"]) not in seen:
            seen.add(prompt)
            yield record
