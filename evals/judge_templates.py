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

from ..serve.prompt_files import prompt_messages, prompt_templates
from .questions import LANGUAGES, Question

FOLDER = Path(__file__).with_name("judge_prompts")

CONTROLS_FILE = FOLDER / "controls.toml"

_FOLDER_HAS = "single and pair in .en.toml and .zh.toml"


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
        for kind, each in kinds:
            prompt_templates(self._folder / f"{kind}.{each}.toml", _FOLDER_HAS)

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
        path = self._folder / f"{kind}.{self._language or question.language}.toml"
        return prompt_messages(path, _FOLDER_HAS, shown)


@cache
def control_texts(language: str) -> Mapping[str, Any]:
    """The texts of the controls in a language: "null", one answer, and "padding", a list of sentences."""
    return tomllib.loads(CONTROLS_FILE.read_text(encoding="utf-8"))[language]
