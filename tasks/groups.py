"""Groups of a task's records, such as each skill in each language, and means of scores over them."""

from collections.abc import Mapping, Sequence
from itertools import product

Groups = Mapping[str, tuple[str, ...]]
"""Fields of a record's meta, and the values of each field."""


def group_of(groups: Groups, record: Mapping) -> str:
    """The values of a record's fields, joined as in "sort/en"; "" where records are not divided."""
    return "/".join(record["meta"][field] for field in groups)


def metric_names(groups: Groups) -> tuple[str, ...]:
    """The names that `group_means` may give: "all", each value of each field, and each group."""
    values = [value for field in groups.values() for value in field]
    return tuple(dict.fromkeys(name for name in ("all", *values, *map("/".join, product(*groups.values()))) if name))


def group_means(groups: Groups, records: Sequence[Mapping], scores: Sequence[float]) -> dict[str, float]:
    """The mean score over all records, over those with each value of a field, and over each group that has records."""
    found: dict[str, list[float]] = {name: [] for name in metric_names(groups)}
    for record, score in zip(records, scores, strict=True):
        values = [record["meta"][field] for field in groups]
        for name in {"all", *values, group_of(groups, record)} & found.keys():
            found[name].append(score)
    return {name: sum(values) / len(values) for name, values in found.items() if values}
