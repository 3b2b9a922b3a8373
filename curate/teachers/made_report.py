"""What the card and the report of rows say that a teacher made by Magpie, dialogues, ranked pairs or revisions."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from ...data.cards import CardSource, CardStep, Count, hash_of
from ...data.licences import terms_of
from ...data.sources import Source, fingerprint
from ..dataset import About
from ..settings import settings_of
from .candidates import Counting, Made


def about(
    name: str,
    settings: Any,
    made: Made,
    steps: Mapping[str, Sequence[str]],
    sources: Mapping[str, CardSource],
    teachers: Sequence[Counting],
    more: Mapping[str, Any],
) -> About:
    """What the card and report.md say beside the rows.

    Args:
      name: name of the dataset.
      settings: the dataclass that made the rows.
      made: the rows.
      steps: reasons of each step that rejects candidates.
      sources: the sources on the card.
      teachers: who was asked.
      more: what decides the rows besides, such as further settings of requests, as JSON can hold it.
    """
    how = settings_of(settings)
    languages = {row.columns.get("language") for row in made.rows}
    return About(
        name=name,
        config={"settings": how, "teachers": [each.name for each in teachers], **more},
        sources=sources,
        steps={step: CardStep(step, {}, 0, dict.fromkeys(reasons, 0)) for step, reasons in steps.items()},
        versions={"jieba": importlib.metadata.version("jieba")} if "novelty" in steps and "zh" in languages else {},
        report="\n\n".join(["## Teachers", *(f"{each}." for each in teachers)]),
    )


def source_of_files(source: Source, made: Made, name: str, licence: str | None, teacher: str) -> CardSource:
    """The card's entry of records that were started from, once the rows are made.

    Args:
      source: where they were read.
      made: what was made of them.
      name: name of the source in the rows.
      licence: its licence, or None.
      teacher: name of the model that wrote the answers.
    """
    rows = [*made.rows, *(each.row for each in made.rejected)]
    read = len({row.place for row in rows if row.source == name})
    return CardSource(source.location, fingerprint(source), read, Count(), licence, teacher, terms_of(teacher))


def source_of_model(made: Made, teacher: str, settings: Any) -> CardSource:
    """The card's entry of rows that a model made from nothing, once they are made."""
    read, what = len(made.rows) + len(made.rejected), hash_of([teacher, settings_of(settings)])
    return CardSource(teacher, what[:32], read, Count(), None, teacher, terms_of(teacher))
