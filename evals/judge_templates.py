"""Prompts for judges, in English and Chinese, and the texts of the controls. The files are in `judge_prompts/`.

A folder has single.en.toml, single.zh.toml, pair.en.toml and pair.zh.toml, each with `system` and `user`, Jinja
templates over `turns` and `has_reference`; the files describe these variables.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import UserError
from .questions import LANGUAGES, Question

FOLDER = Path(__file__).with_name("judge_prompts")

CONTROLS_FILE = FOLDER / "controls.toml"


class JudgePrompts:
    """The prompts of a folder.

    Args:
      folder: the folder; None takes the project's own.
      language: "en" or "zh" for all questions; None takes the language of each question.

    Raises:
      UserError: a file is missing, is no TOML, lacks `system` or `user`, or one of the two is no template.
    """

    def __init__(self, folder: str | os.PathLike | None = None, language: str | None = None):
        self._folder, self._language = Path(FOLDER if folder is None else folder).expanduser(), language
        kinds = [(kind, each) for kind in ("single", "pair") for each in ([language] if language else LANGUAGES)]
        self._templates = {(kind, each): _templates(self._folder / f"{kind}.{each}.toml") for kind, each in kinds}

    def messages(self, question: Question, answers: Sequence[Sequence[str]], references: bool) -> list[dict[str, str]]:
        """The messages for the judge.

        Args:
          question: the question.
          answers: of each author the answers in all turns up to the one that is graded; one author or two.
          references: whether the question's references are shown.
        """
        kind = "single" if len(answers) == 1 else "pair"
        names = ("answer",) if len(answers) == 1 else ("answer_a", "answer_b")
        right = question.reference if references and question.reference else ("",) * len(question.turns)
        turns = [
            {"question": question.turns[i], "reference": right[i]}
            | {name: said[i] for name, said in zip(names, answers, strict=True)}
            for i in range(len(answers[0]))
        ]
        shown = {"turns": turns, "has_reference": bool(turns[-1]["reference"])}
        return [
            {"role": role, "content": self._render(kind, self._language or question.language, part, shown)}
            for role, part in (("system", "system"), ("user", "user"))
        ]

    def _render(self, kind: str, language: str, part: str, shown: Mapping[str, Any]) -> str:
        try:
            return self._templates[kind, language][part].render(shown).strip()
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            where = self._folder / f"{kind}.{language}.toml"
            raise UserError(f"{where}: {part} cannot be filled in ({error}): mend the template") from None


@cache
def control_texts(language: str) -> Mapping[str, Any]:
    """The texts of the controls in a language: "null", one answer, and "padding", a list of sentences."""
    return tomllib.loads(CONTROLS_FILE.read_text(encoding="utf-8"))[language]


def _templates(path: Path) -> dict[str, jinja2.Template]:
    """The templates `system` and `user` of a file."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}: a folder of prompts has single and pair in .en.toml and .zh.toml"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: no TOML in UTF-8 ({error}): mend the file") from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    made = {}
    for part in ("system", "user"):
        if not isinstance(found.get(part), str):
            raise UserError(f"{path}: there is no text `{part}`: add one")
        try:
            made[part] = environment.from_string(found[part])
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{path}: line {error.lineno} of {part}: {error.message}: mend the template") from None
    return made
