"""Sentences about a comparison: what its table does not show, and what speaks against comparing its runs."""

import itertools
import math
from collections.abc import Sequence

from .comparison import ComparedRun, Group, Metric
from .comparison_tables import MOST_COLUMNS, Comparison

PACKAGE = "camelid "
"""What the version of an installed package begins with, where no commit is known."""

MOST_NAMED = 3
"""Number of runs or versions that a sentence names."""


def notes(found: Comparison) -> list[str]:
    """The sentences about a comparison, which are told on standard error."""
    said = [_recipes(found.runs), _versions(found.runs), _repeats(found.groups, found.metrics)]
    if not found.metrics or not any(run.metrics for run in found.runs):
        said.append(no_metric(found.runs))
    if (hidden := len(found.leaves) - MOST_COLUMNS) > 0:
        said.append(f"{hidden} more leaves differ: --csv and --json have them all")
    return [sentence for sentence in said if sentence]


def no_metric(runs: Sequence[ComparedRun]) -> str:
    """Why there is no metric to compare."""
    if any(run.metrics for run in runs):
        return "the runs have reported no metric in common: name some by --metric=NAME"
    return "no run has reported a metric yet"


def _recipes(runs: Sequence[ComparedRun]) -> str:
    recipes = sorted({str(run.leaves.get("recipe")) for run in runs})
    if len(recipes) == 1:
        return ""
    return f"runs of different recipes ({', '.join(recipes)}): only the leaves that they share are compared"


def _versions(runs: Sequence[ComparedRun]) -> str:
    """That the runs were made by several commits of camelid, which separate no settings."""
    versions = list(dict.fromkeys(itertools.chain.from_iterable(run.versions for run in runs)))
    if len(versions) < 2:
        return ""
    by_commit: dict[str, str] = {}
    for version in sorted(versions):  # one with changed files comes after the commit itself, and takes its place
        by_commit[version if version.startswith(PACKAGE) else version.partition(" ")[0]] = version
    if len(by_commit) == 1:
        return (
            f"some of the runs were made by commit {versions[0][:7]}, others by its changed files: run.json says which"
        )
    kind = "versions" if any(name.startswith(PACKAGE) for name in by_commit) else "commits"
    return (
        f"the runs were made by {len(by_commit)} {kind} of camelid: {_listed([*by_commit.values()])}; run.json has them"
    )


def _repeats(groups: Sequence[Group], metrics: Sequence[Metric]) -> str:
    """That runs with the same settings, code and seed have reported other values."""
    found = []
    for group in groups:
        by_seed = {run.seed_key: run for run in group.counted}
        for run in group.runs:
            if difference := _difference(run, by_seed[run.seed_key], metrics):
                found.append(difference)
    if not found:
        return ""
    one = len(found) == 1
    return (
        f"{len(found)} run{'' if one else 's'} repeat{'s' if one else ''} another with the same seed and settings, but "
        f"with other values: {_listed(found)}; of each seed the run that went furthest counts"
    )


def _difference(run: ComparedRun, counted: ComparedRun, metrics: Sequence[Metric]) -> str | None:
    """The last step at which two runs have other values of a metric that is compared; None where there is none."""
    for metric in metrics:
        ours, theirs = ({point.step: point.value for point in each.curve(metric.name)} for each in (run, counted))
        for step in sorted(ours.keys() & theirs.keys(), reverse=True):
            a, b = ours[step], theirs[step]
            if a != b and not (math.isnan(a) and math.isnan(b)):
                return f"{run.name} ({metric.name} {a:.6g} at step {step}, {b:.6g} in {counted.name})"
    return None


def _listed(words: Sequence[str]) -> str:
    more = len(words) - MOST_NAMED
    return f"{', '.join(words[:MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"
