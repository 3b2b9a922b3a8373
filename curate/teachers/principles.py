"""Principles by which a teacher criticises and revises answers, in English and Chinese. The file is `principles.toml`.

A file of one's own has a table for each principle, with what a criticism looks for and what a revision does:

    [[principle]]
    name = "honest"
    en = {critique = "Where does it claim more than ...", revision = "Rewrite it so that ..."}
    zh = {critique = "...", revision = "..."}
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from .seeds import LANGUAGES

FILE = Path(__file__).with_name("principles.toml")


@dataclass(frozen=True)
class Principle:
    """A principle in one language."""

    name: str
    """Name of the principle, the same in all languages."""

    critique: str
    """What a criticism of an answer looks for."""

    revision: str
    """What a revision of the answer does."""


def read_principles(path: str | os.PathLike | None = None) -> dict[str, list[Principle]]:
    """The principles of a file by language, in the order of the file.

    Args:
      path: the file; None takes the project's own.

    Raises:
      UserError: the file cannot be read, is no TOML, has no principle, or one lacks a name or a text.
    """
    path = FILE if path is None else Path(path).expanduser()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("principle")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give a file of principles") from None
    except ValueError as error:
        raise UserError(f"{path}: no TOML in UTF-8 ({error}): mend the file") from None
    if not isinstance(found, list) or not found:
        raise UserError(f"{path} has no [[principle]]: add at least one")
    principles: dict[str, list[Principle]] = {language: [] for language in LANGUAGES}
    for number, each in enumerate(found, 1):
        where = f"{path}: principle {number}"
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str) or not name or name in [other.name for other in principles[LANGUAGES[0]]]:
            raise UserError(f"{where} has no name of its own: give it one")
        for language in LANGUAGES:
            texts = each.get(language, {})
            said = [texts.get(part) if isinstance(texts, dict) else None for part in ("critique", "revision")]
            if not all(isinstance(text, str) and text.strip() for text in said):
                raise UserError(f"{where} ({name}): {language} has no texts `critique` and `revision`: add them")
            principles[language].append(Principle(name, *(text.strip() for text in said)))
    return principles
