"""Small datasets for tests of the ledger."""

import json
import shutil
from pathlib import Path

from camelid.curate.applying import RejectedRow
from camelid.curate.dataset import About, Layout, write_dataset
from camelid.curate.rows import Row, id_of
from camelid.data.cards import Card, CardSource, CardStep, Count


def chat(question: str, answer: str) -> dict:
    return {
        "kind": "chat",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def make(
    folder: Path,
    pairs: list[tuple[str, str]],
    *,
    licence: str | None = "MIT",
    teacher: str | None = None,
    source: str = "web",
    heldout: int = 0,
    rejected: int = 0,
    write_as: str = "camelid",
) -> Card:
    """A dataset of conversations: the first `heldout` are held out, the last `rejected` rejected as too short. It takes
    the place of a dataset that stands there."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = [
        Row(
            id_of(source, {"q": question, "a": answer}),
            chat(question, answer) | {"meta": {"number": number}},
            source,
            f"{source}.json, record {number + 1}",
            {"language": "en", "split": "heldout" if number < heldout else "train", "request": f"r{number}"},
        )
        for number, (question, answer) in enumerate(pairs)
    ]
    kept, dropped = rows[: len(rows) - rejected], rows[len(rows) - rejected :]
    about = About(
        folder.name,
        {"of": folder.name},
        {source: CardSource(f"{source}.json", "ab12", len(rows), Count(), licence, teacher)},
        {"length": CardStep("length", {"characters": 9})},
        {"camelid": "0.1.0"},
    )
    others = [RejectedRow(row, "length", "too_short", "7 characters") for row in dropped]
    return write_dataset(folder, kept, others, about, layout=Layout(write_as=write_as))[0]


def lines(folder: Path, kind: str = "train") -> list[dict]:
    """The objects in a dataset's files of one kind, in order."""
    return [json.loads(line) for file in sorted((folder / kind).glob("*")) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a dataset, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
