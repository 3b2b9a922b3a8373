"""What the card and the report of a self-instruct run say."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from ...data.cards import CardSource, CardStep, Count, hash_of
from ...data.licences import terms_of
from ...settings.sections import to_config
from ..dataset import About
from ..run_table import Table, to_markdown
from ..settings import settings_of
from .instruct import ANSWER, FILTERS, NOVELTY, ROWS, Instruct, Made, source_of
from .instruct_filters import Filters
from .instruct_parsing import REASONS
from .seeds import read_seeds


def about(
    made: Made,
    settings: Instruct,
    teacher: str,
    more: Mapping[str, Any] | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
) -> About:
    """What the card and report.md say beside the rows.

    Args:
      made: what the run made.
      settings: its settings.
      teacher: name of the teacher.
      more: further settings of its requests.
      prices: of a million tokens of prompts and of answers.
    """
    config = to_config(settings).to_dict() | {"teacher": teacher, "request": dict(more or {})}
    return About(
        name=settings.name,
        config=config,
        sources={source_of(language): _source(made, settings, language, teacher) for language in settings.languages},
        steps=_steps(settings),
        versions={"jieba": importlib.metadata.version("jieba")} if "zh" in settings.languages else {},
        report=f"{rounds_of(made)}\n\n{ledger_of(made, prices)}",
    )


def _source(made: Made, settings: Instruct, language: str, teacher: str) -> CardSource:
    """The card's entry of the tasks in a language."""
    wanted, name = settings.languages[language], source_of(language)
    read = sum(row.source == name for row in made.rows) + sum(each.row.source == name for each in made.rejected)
    seeds = hash_of([[seed.instruction, seed.input, seed.output] for seed in read_seeds(wanted.seeds)])
    return CardSource(wanted.seeds, seeds, read, Count(), wanted.licence, teacher, terms_of(teacher))


def _steps(settings: Instruct) -> dict[str, CardStep]:
    """The card's entries of the steps, in their order."""
    found = {
        ANSWER: CardStep("instruct_parsing", {}, 0, dict.fromkeys(REASONS, 0)),
        FILTERS: CardStep("instruct_filters", settings_of(settings.filters), 0, dict.fromkeys(Filters.reasons, 0)),
    }
    for name, step in settings.made_steps():
        used = settings.step.get(name, {}).get("use", name)
        found[name] = CardStep(used, settings_of(step), 0, dict.fromkeys(step.reasons, 0))
    found[NOVELTY] = CardStep("novelty", {"threshold": settings.threshold}, 0, {"similar": 0})
    wanted = {language: each.rows for language, each in settings.languages.items()}
    return found | {ROWS: CardStep("rows", wanted, 0, {"enough": 0})}


def rounds_of(made: Made) -> str:
    """A table of the rounds, and why languages ended with fewer rows than wanted, in Markdown."""
    rows = [[str(each.number), each.language, each.requests, each.kept, each.rejected.total()] for each in made.rounds]
    table = to_markdown(iter([Table("Rounds", ["round", "language", "requests", "kept", "dropped"], rows)]))
    return "\n".join([table, *(f"{language}: {why}.\n" for language, why in made.ended.items())]).strip()


def ledger_of(made: Made, prices: tuple[float, float] = (0.0, 0.0)) -> str:
    """What the replies took that the rows were read from. It does not depend on failures and interruptions."""
    cost = (made.teacher.prompt_tokens * prices[0] + made.teacher.completion_tokens * prices[1]) / 1e6
    told = str(made.teacher)
    if made.rows:
        told += f": {made.teacher.completion_tokens / len(made.rows):,.0f} tokens of answers for each kept row"
    return f"## Ledger\n\n{told}{f'. They cost {cost:,.4f}' if any(prices) else ''}."
