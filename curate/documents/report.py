"""What the cards and reports of datasets say that were made from documents."""

import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...data.cards import CardSource, CardStep, Count, hash_of
from ...data.files import utf8_name
from ...data.licences import terms_of
from ..applying import RejectedRow
from ..dataset import About
from ..run_table import Table, to_markdown
from ..settings import settings_of
from .questions import REASONS as QUESTION_REASONS
from .questions import SOURCE, Asked, Questions
from .rows import READ, REASONS, Documents, Reading

PACKAGES = {
    ".pdf": ("pypdfium2",),
    ".docx": ("python-docx",),
    ".xlsx": ("openpyxl",),
    ".html": ("markdownify", "beautifulsoup4", "lxml", "markdown-it-py"),
    ".htm": ("markdownify", "beautifulsoup4", "lxml", "markdown-it-py"),
    ".md": ("markdown-it-py",),
    ".markdown": ("markdown-it-py",),
}
"""The packages that decide what is read of each kind of file."""


def about_documents(
    folder: Path, found: Documents, settings: Reading, rejected: Sequence[RejectedRow], licence: str | None
) -> About:
    """What the card and report.md of the passages say.

    Args:
      folder: the folder as the user gave it.
      found: what it holds.
      settings: how it was read.
      rejected: the rejected rows of the dataset.
      licence: name of the documents' licence, or None.
    """
    return About(
        name="documents",
        config=settings_of(settings),
        sources={"documents": _source(folder, found, len(found.passages) + len(rejected), licence)},
        steps={READ: CardStep("documents", settings_of(settings), 0, dict.fromkeys(REASONS, 0))},
        versions=_versions(found),
        report=to_markdown(iter([files_table(found)])),
    )


def about_questions(
    folder: Path,
    found: Documents,
    settings: Reading,
    rejected: Sequence[RejectedRow],
    licence: str | None,
    asked: Asked | None = None,
    questions: Questions | None = None,
    teacher: str = "",
    more: dict[str, Any] | None = None,
) -> About:
    """What the card and report.md of the questions say: those in tables, and those that a teacher wrote.

    Args:
      folder: the folder as the user gave it.
      found: what it holds.
      settings: how it was read.
      rejected: the rejected rows of the dataset.
      licence: name of the documents' licence, or None.
      asked: what the teacher wrote; None without one.
      questions: how the teacher was asked; None without one.
      teacher: name of the teacher.
      more: further settings of its requests.
    """
    sources, steps, report = {}, {}, ""
    config, versions = settings_of(settings), _versions(found)
    bad = [each for each in rejected if each.step == READ]
    if found.records or bad:
        sources["documents"] = _source(folder, found, len(found.records) + len(bad), licence)
        steps[READ] = CardStep("documents", settings_of(settings), 0, dict.fromkeys(REASONS, 0))
    if asked is not None:
        how = settings_of(questions)
        config |= {"questions": how, "teacher": teacher, "request": dict(more or {})}
        read = len(asked.rows) + len(asked.rejected)
        sources[SOURCE] = CardSource(
            utf8_name(folder), _fingerprint(found), read, Count(), licence, teacher=teacher, terms=terms_of(teacher)
        )
        for name, reasons in QUESTION_REASONS.items():
            used = {"support": questions.support} if name == "grounded" else {}
            steps[name] = CardStep(name, used, 0, dict.fromkeys(reasons, 0))
        versions |= {"jieba": importlib.metadata.version("jieba")}
        report = f"## Teacher\n\n{ledger_of(asked)}."
    return About("questions", config, sources, steps, versions, report=report)


def ledger_of(asked: Asked) -> str:
    """What the teacher's replies took. It does not depend on failures and interruptions."""
    return f"{asked.teacher}: {len(asked.rows):,} questions kept, {len(asked.rejected):,} rejected"


def files_table(found: Documents) -> Table:
    """What became of each file."""
    header = ["file", "pages", "passages", "records", "notes"]
    rows = [
        [each.name, "" if each.pages is None else each.pages, each.passages, each.records, "; ".join(each.notes)]
        for each in found.files
    ]
    return Table("Files", header, rows)


def _source(folder: Path, found: Documents, read: int, licence: str | None) -> CardSource:
    return CardSource(utf8_name(folder), _fingerprint(found), read, Count(), licence)


def _fingerprint(found: Documents) -> str:
    """A hash of the names and contents of all files that were read."""
    rows = [*found.passages, *found.records]
    return hash_of(sorted({(row.columns["file"], row.columns["file_hash"]) for row in rows}))


def _versions(found: Documents) -> dict[str, str]:
    kinds = {Path(each.name).suffix.lower() for each in found.files}
    names = sorted({package for kind in kinds for package in PACKAGES.get(kind, ())})
    return {name: importlib.metadata.version(name) for name in names if _is_installed(name)}


def _is_installed(name: str) -> bool:
    return next(iter(importlib.metadata.distributions(name=name)), None) is not None


def split_rejected(rejected: Iterable[RejectedRow]) -> tuple[list[RejectedRow], list[RejectedRow]]:
    """Rejected files, and rejected rows of tables."""
    every = list(rejected)
    return [r for r in every if r.reason != "malformed"], [r for r in every if r.reason == "malformed"]
