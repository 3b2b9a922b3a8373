"""Groups of a task's records, such as each skill in each language, and mean scores of groups."""

from collections.abc import Mapping, Sequence
from itertools import product

Groups = Mapping[str, tuple[str, ...]]
"""The fields of a record's meta that divide records into groups, with the values of each field."""


def group_of(groups: Groups, record: Mapping) -> str:
    """The name of a record's group, its values of all fields, such as "sort/en"; "" if there are no fields."""
    return "/".join(record["meta"][field] for field in groups)


def metric_names(groups: Groups) -> tuple[str, ...]:
    """The names that `group_means` may return: "all", each value of each field, and each group."""
    values = [value for field in groups.values() for value in field]
    return tuple(dict.fromkeys(name for name in ("all", *values, *map("/".join, product(*groups.values()))) if name))


def group_means(groups: Groups, records: Sequence[Mapping], scores: Sequence[float]) -> dict[str, float]:
    """The mean score over all records, over those with each value of a field, and over each group.

    Groups without records are left out.

    Args:
      groups: the fields, and the values of each field.
      records: the records.
      scores: the score of each record.

    Returns:
      Mean scores by name, of the names in `metric_names`.
    """
    found: dict[str, list[float]] = {name: [] for name in metric_names(groups)}
    for record, score in zip(records, scores, strict=True):
        values = [record["meta"][field] for field in groups]
        for name in {"all", *values, group_of(groups, record)} & found.keys():
            found[name].append(score)
    return {name: sum(values) / len(values) for name, values in found.items() if values}
