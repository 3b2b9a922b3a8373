"""Prompts of self-instruct in English and Chinese, as files that a user can replace. The files are in `prompts/`.

A prompt is a TOML file with `system` and `user`, Jinja templates whose variables the file describes:

    tasks.LANGUAGE.toml           asks for whole tasks
    instructions.LANGUAGE.toml    asks for instructions alone
    instance.LANGUAGE.toml        asks for the input and the output of an instruction
"""

import os
from pathlib import Path
from typing import Any

from ...serve.prompt_files import prompt_messages

FOLDER = Path(__file__).with_name("prompts")


class Prompts:
    """The prompts of a folder.

    Args:
      folder: the folder; None takes the project's own.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self._folder = FOLDER if folder is None else Path(folder).expanduser()

    def messages(self, kind: str, language: str, **variables: Any) -> list[dict[str, str]]:
        """The messages that ask for something.

        Args:
          kind: name of the file, such as "tasks".
          language: "en" or "zh".
          **variables: the variables of the templates.

        Raises:
          UserError: the file cannot be read, is no TOML, lacks `system` or `user`, or a template cannot be filled in.
        """
        path = self._folder / f"{kind}.{language}.toml"
        return prompt_messages(path, f"{kind}.en.toml and {kind}.zh.toml", variables)
