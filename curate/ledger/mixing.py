"""Mixes datasets with cards into one: rows by weight, without exact repeats, unless their licences exclude each other.

Rows keep their ids, and what was found out about them. The source of a row is "DATASET/SOURCE". The card of the mixture
holds the cards of the datasets.
"""

import heapq
import importlib.metadata
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from ...data.cards import Card, CardStep, Count, Parent, read_card
from ...data.files import utf8_name
from ...data.licences import CONFLICTS, Terms, conflicts, terms_in
from ...data.locks import locked
from ...errors import UserError, check_choice
from ..applying import RejectedRow
from ..dataset import About, Layout, write_sorted
from ..duplicates.exact import ExactDuplicates
from ..measure import Measure
from ..rows import HELDOUT, TRAIN, Row, fraction_of
from ..run_table import RunTable
from .lineage import rows_of

STEP = "mix"
"""Name of the step that rejects rows of the datasets."""

REASONS = ("repeated", "same_id", "weight")
"""Why a row is not in the mixture: another row of it has equal content, or the same id with other content; or a smaller
share of its dataset was asked for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A dataset that is mixed."""

    folder: Path
    """The dataset's folder."""

    weight: float | None = None
    """Share of its training rows in the mixture, relative to the other datasets. None: all of its rows."""

    @property
    def name(self) -> str:
        """Name of the dataset in the mixture: that of its folder."""
        return utf8_name(self.folder.resolve().name)

    @cached_property
    def card(self) -> Card:
        """The dataset's card."""
        return read_card(self.folder)

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of a split, in the order of their ids, with sources as the mixture names them."""
        for row in rows_of(self.folder, self.card, split):
            yield replace(row, source=f"{self.name}/{row.source}")


def terms_of_parts(parts: Sequence[Part]) -> list[Terms]:
    """The licences and teachers' terms of all datasets."""
    return [terms for part in parts for terms in terms_in(part.name, part.card)]


def check_conflicts(parts: Sequence[Part], use: str, allow: Sequence[str]) -> list[str]:
    """Compares the licences of datasets with each other and with a use.

    Args:
      parts: the datasets.
      use: "research" or "commercial".
      allow: kinds of conflicts (`data.licences.CONFLICTS`) that are allowed.

    Returns:
      The conflicts that are allowed, as sentences.

    Raises:
      UserError: there is another conflict.
    """
    for kind in allow:
        check_choice("allow_conflicts", kind, CONFLICTS)
    found = conflicts(terms_of_parts(parts), use)
    if refused := [each for each in found if each.kind not in allow]:
        kinds = list(dict.fromkeys(each.kind for each in refused))
        record = ", record the licence in the config that makes it" if "unknown" in kinds else ""
        raise UserError(
            f"{'; '.join(each.message for each in refused)} (use: {use}). Leave a dataset out{record}, or give "
            f"--allow_conflicts={','.join(kinds)} if you have cleared it"
        )
    return [each.message for each in found]


def mix(
    parts: Sequence[Part],
    output: Path,
    *,
    use: str = "research",
    allow: Sequence[str] = (),
    tokenizer: str | None = None,
    shards: int = 1,
) -> tuple[Card, RunTable]:
    """Writes the mixture of datasets as a dataset.

    Of rows with equal content one stays: a held-out one before others, then the one with the smallest id. With weights,
    as many training rows are kept as exist in their proportions; which ones, a hash of the id says. Held-out rows are
    all kept.

    Args:
      parts: the datasets, of different names.
      output: folder of the mixture.
      use: what the mixture is for, "research" or "commercial".
      allow: kinds of conflicts between licences that are allowed.
      tokenizer: path of a tokenizer that counts tokens; None: characters are counted.
      shards: number of files of each split. Records of rejected rows are not written: they are in the datasets.

    Raises:
      UserError: licences exclude each other or the use, a dataset's file has other bytes than its card says, or
        weights, names or folders do not fit.
    """
    _check(parts, output)
    check_conflicts(parts, use, allow)
    for part in parts:
        if problem := part.card.damage(part.folder):
            raise UserError(f"{part.folder}: {problem}: make the dataset anew, or copy it again")
    measure, tagged = Measure(tokenizer), _Tagged(parts)
    rejected = _repeats(tagged)
    rejected |= _unweighted(tagged, rejected)

    def left_out() -> Iterator[RejectedRow]:
        for number, row in _rows(parts, (HELDOUT, TRAIN)) if rejected else ():
            if (row.id, number) in rejected:
                yield RejectedRow(measure.with_size(row), STEP, *rejected[row.id, number])

    settings = {"weights": {part.name: part.weight for part in parts}, "use": use, "allow_conflicts": list(allow)}
    about = About(
        utf8_name(output.resolve().name),
        {STEP: settings, "datasets": {part.name: part.card.hash for part in parts}, "shards": shards},
        {
            f"{part.name}/{n}": replace(source, kept=Count())
            for part in parts
            for n, source in part.card.sources.items()
        },
        {STEP: CardStep(STEP, settings, rejected=dict.fromkeys(REASONS, 0))},
        {"camelid": importlib.metadata.version("camelid")},
        {part.name: Parent(str(part.folder), part.card) for part in parts},
    )
    both = _rows(parts, (HELDOUT, TRAIN))
    kept = (measure.with_size(row) for number, row in both if (row.id, number) not in rejected)
    layout = Layout(shards, keep_rejected=False)
    with locked(output / ".write.lock", lambda holder: _refuse(output, holder)):
        return write_sorted(output, kept, left_out(), about, RunTable(measure), layout)


def _refuse(output: Path, holder: str) -> None:
    raise UserError(f"{output} is in use by {holder}: wait for it, or give another --output")


def _check(parts: Sequence[Part], output: Path) -> None:
    """Raises UserError for datasets of one name, for weights that do not fit, and an output among the datasets."""
    if len(parts) < 2:
        raise UserError("a mixture needs at least two datasets")
    names = [part.name for part in parts]
    for part in parts:
        if names.count(part.name) > 1:
            raise UserError(f"two datasets are called {part.name}: rename the folder of one")
        if part.folder.resolve() == output.resolve():
            raise UserError(f"--output={output} is one of the datasets: give another folder")
        if part.weight is not None and not 0 < part.weight < float("inf"):
            raise UserError(f"the weight of {part.name} is {part.weight:g}: give a number above 0, or leave it out")
    if len({part.weight is None for part in parts}) > 1:
        raise UserError("give a weight to every dataset or to none")


def _rows(parts: Sequence[Part], splits: Iterable[str]) -> Iterator[tuple[int, Row]]:
    """Pairs (number of the dataset, row) of some splits, in the order of ids; of one id the first split comes first."""
    sorted_rows = (map(partial(_numbered, n), part.rows(split)) for split in splits for n, part in enumerate(parts))
    return heapq.merge(*sorted_rows, key=lambda pair: pair[1].id)


def _numbered(number: int, row: Row) -> tuple[int, Row]:
    return number, row


class _Tagged:
    """The rows of all datasets for `ExactDuplicates`: held-out ones first, each with an id that names its dataset.

    Attributes:
      parts: the datasets.
      seen: (id, number of the dataset, split) of each row, in this order, once all rows were read.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts
        self.seen: list[tuple[str, int, str]] = []

    def __iter__(self) -> Iterator[Row]:
        for split in (HELDOUT, TRAIN):
            for number, row in _rows(self.parts, (split,)):
                self.seen.append((row.id, number, split))
                yield replace(row, id=f"{row.id}@{number}")

    def map(self, function: Callable[[Iterator[Row]], T]) -> Iterator[T]:
        yield function(iter(self))


def _repeats(tagged: _Tagged) -> dict[tuple[str, int], tuple[str, str]]:
    """Reason and detail of each row that another row equals, or that has the id of another; by id and dataset."""
    exact = ExactDuplicates(ignore_case=False, ignore_whitespace=False, ignore_width=False)
    found = {}
    for tag, why in exact.decide(tagged):
        id, _, number = tag.partition("@")
        other, _, among = why.detail.removeprefix("equals ").partition("@")
        found[id, int(number)] = ("repeated", f"equals {other} of {tagged.parts[int(among)].name}")
    owner: dict[str, int] = {}
    for id, number, _ in tagged.seen:
        if (id, number) not in found and owner.setdefault(id, number) != number:
            found[id, number] = ("same_id", f"{tagged.parts[owner[id]].name} has the id with other content")
    return found


def _unweighted(tagged: _Tagged, rejected: Container[tuple[str, int]]) -> dict[tuple[str, int], tuple[str, str]]:
    """Reason and detail of each training row that the weights leave out; by id and dataset."""
    if tagged.parts[0].weight is None:
        return {}
    ids: list[list[str]] = [[] for _ in tagged.parts]
    for id, number, split in tagged.seen:
        if split == TRAIN and (id, number) not in rejected:
            ids[number].append(id)
    for part, rows in zip(tagged.parts, ids, strict=True):
        if not rows:
            raise UserError(f"{part.name} has no training row that is not in the others: leave it out of the weights")
    whole = min(len(rows) / part.weight for part, rows in zip(tagged.parts, ids, strict=True))
    found = {}
    for number, (part, rows) in enumerate(zip(tagged.parts, ids, strict=True)):
        count = round(part.weight * whole)
        if not count:
            raise UserError(
                f"{part.name} would have none of its {len(rows):,} training rows: beside the other weights, its weight "
                f"of {part.weight:g} stands for {part.weight * whole:.2g} rows; give it a larger one, or leave it out"
            )
        order = sorted(rows, key=lambda id: fraction_of(id, STEP))
        detail = f"{count:,} of {len(rows):,} rows of {part.name} have their share"
        found |= {(id, number): ("weight", detail) for id in order[count:]}
    return found
