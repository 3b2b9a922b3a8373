"""What is known about a dataset and its rows, as objects of JSON: the reports of `camelid curate audit`."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ...data.cards import Card, has_card, read_card
from ...data.licences import Terms, conflicts, duties, find, terms_in
from ...errors import UserError
from ..dataset import REJECTED
from ..duplicates.evaluation_sets import EvaluationSet
from ..duplicates.ngrams import Index, Ngrams
from ..duplicates.shingles import searched
from ..measure import text_of_any
from ..rows import HELDOUT, TRAIN
from .lineage import Line, Origin, find_id, find_text, origins_of, rows_of

WRITTEN = "as they were written"
"""What a report says of a dataset's files that are not damaged."""

SHOWN_CHARACTERS = 300
"""Characters of a row's text that reports show."""

SHOWN_ROWS = 10
"""Rows with an item of an evaluation set that reports name."""

Report = dict[str, Any]


class Searched(NamedTuple):
    """A row in which evaluation sets are looked for."""

    row: str
    """Its id, or where it was read."""

    split: str
    """train or heldout."""

    texts: list[str]
    """Its texts (`shingles.searched`)."""


def dataset_report(folder: Path, card: Card, use: str) -> Report:
    """What a dataset's card says, whether its files are those that were written, and what its licences ask for.

    use: what it is for, "research" or "commercial".
    """
    return {
        "dataset": str(folder),
        "card": card.hash,
        "unit": card.unit,
        "files": card.damage(folder) or WRITTEN,
        "splits": {name: asdict(count) for name, count in card.splits.items()},
        "languages": {name: asdict(count) for name, count in card.languages.items()},
        "sources": {name: _source(card, name) for name in card.sources},
        "steps": {name: asdict(step) for name, step in card.steps.items()},
        "parents": {name: _parent(parent.location, parent.card) for name, parent in card.parents.items()},
        **licence_report(terms_in(folder.resolve().name, card), use),
    }


def licence_report(terms: list[Terms], use: str) -> Report:
    """The duties that licences bring, where each was read, and what excludes each other or the use."""
    known = {licence.name: licence.source for each in terms if (licence := each.licence) is not None}
    return {
        "licences": known,
        "duties": duties(terms),
        "use": use,
        "conflicts": [each._asdict() for each in conflicts(terms, use)],
    }


def _source(card: Card, name: str) -> Report:
    source = card.sources[name]
    return asdict(source) | {"dataset": parent.card.name if (parent := card.parent_of(name)) else None}


def _parent(location: str, card: Card) -> Report:
    """Whether a dataset that another was made from is still there and the same."""
    return {"location": location, "card": card.hash, "now": state_of(location, card.hash)}


def state_of(location: str, card_hash: str) -> str:
    """Whether a dataset's folder holds the card of a hash, and the files of the card: in words."""
    folder = Path(location)
    if not has_card(folder):
        return "gone"
    try:
        card = read_card(folder)
    except UserError as problem:
        return str(problem)
    if card.hash != card_hash:
        return "another dataset now"
    return card.damage(folder) or "the same"


def rows_by_id(folder: Path, card: Card, wanted: str) -> list[Report]:
    """Where the rows with an id come from, or why they were rejected; see `find_id`."""
    return list(_rows(folder, folder.resolve().name, card, lambda where, its: find_id(where, its, wanted)))


def rows_by_text(folder: Path, card: Card, wanted: str) -> list[Report]:
    """Where the rows that hold a text come from, or why they were rejected; see `find_text`."""
    return list(_rows(folder, folder.resolve().name, card, lambda where, its: find_text(where, its, wanted)))


def _rows(
    folder: Path, name: str, card: Card, find: Callable[[Path, Card], Iterator[tuple[str, Line]]]
) -> Iterator[Report]:
    """The rows that `find` finds in a dataset. If it has none, those in the datasets that it was made from."""
    found = False
    for kind, line in find(folder, card):
        found = True
        yield row_report(name, card, kind, line)
    if not found:
        for parent_name, parent in card.parents.items():
            where = Path(parent.location)
            if has_card(where):
                yield from _rows(where, f"{name}/{parent_name}", read_card(where), find)


def row_report(name: str, card: Card, kind: str, line: Line) -> Report:
    """One row: where it stands, why it was rejected if it was, and its way back to the record that it comes from."""
    rejected = kind == REJECTED
    record = line.found.get("record", {}) if rejected else line.found
    why = {key: line.found[key] for key in ("step", "reason", "detail")} if rejected else None
    return {
        "id": line.found["id"],
        "dataset": name,
        "kind": kind,
        "line": line.place,
        "rejected": why,
        "way": [_origin(origin) for origin in origins_of(name, card, line)],
        "text": text_of_any(record)[:SHOWN_CHARACTERS],
    }


def _origin(origin: Origin) -> Report:
    source = origin.details
    said = {"location": source.location, "licence": source.licence, "teacher": source.teacher, "terms": source.terms}
    licences = {label: licence.title for label in ("licence", "terms") if (licence := find(said[label]))}
    return {
        "dataset": origin.dataset,
        "source": origin.source,
        "record": origin.place,
        **said,
        "titles": licences,
        "columns": dict(origin.columns),
    }


def searched_rows(folder: Path, card: Card) -> Iterator[Searched]:
    """The training rows of a dataset, then its held-out rows."""
    for split in (TRAIN, HELDOUT):
        for row in rows_of(folder, card, split):
            yield Searched(row.id, split, searched(row.record))


def leak_report(rows: Iterable[Searched], sets: Mapping[str, EvaluationSet]) -> Report:
    """Which items of evaluation sets stand in rows of which split, by the rule of the step `decontaminate`.

    Args:
      rows: the rows.
      sets: the evaluation sets by name.

    Raises:
      UserError: a file of a set cannot be read.
    """
    index = Index.from_sets(sets, Ngrams())
    found: dict[tuple[str, str], list[Report]] = defaultdict(list)
    count, leaked_in = Counter({TRAIN: 0}), defaultdict(set)
    for row, split, texts in rows:
        count[split] += 1
        for hit in index.hits(*texts):
            found[hit.set, hit.item].append({"row": row, "split": split, "ngram": hit.ngram, "share": hit.share})
            leaked_in[hit.set, split].add(hit.item)
    leaked = [
        {"set": set_, "item": item, "rows": len(hits), "found": sorted(hits, key=_by_share)[:SHOWN_ROWS]}
        for (set_, item), hits in sorted(found.items())
    ]
    items, unchecked = (Counter(set_ for set_, _ in each) for each in (index.items, index.unchecked))
    return {
        "rows": dict(count),
        "sets": {
            name: {
                "items": items[name],
                "leaked": {split: len(leaked_in[name, split]) for split in count},
                "unchecked": unchecked[name],
            }
            for name in sets
        },
        "leaked": leaked,
    }


def _by_share(hit: Report) -> tuple[float, str]:
    return -hit["share"], hit["row"]
