"""How the tasks draw and write their records."""

from hashlib import blake2b
from random import Random

from ..errors import UserError

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
    """The preference record of two answers. labels: margin, safer and what else a preference may say of its answers."""
    return {
        "kind": "preference",
        "messages": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **(labels or {}),
        **({"meta": meta} if meta else {}),
    }


def check_choice(task: str, what: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises UserError naming the choices where `value` is none of them."""
    if value not in choices:
        raise UserError(f"{task}: unknown {what} {value!r}; choose one of {', '.join(choices)}")
