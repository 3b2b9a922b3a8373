"""Prompts of self-instruct in English and Chinese, as files that a user can replace. The files are in `prompts/`.

A prompt is a TOML file with `system` and `user`, Jinja templates whose variables the file describes:

    tasks.LANGUAGE.toml           asks for whole tasks
    instructions.LANGUAGE.toml    asks for instructions alone
    instance.LANGUAGE.toml        asks for the input and the output of an instruction
"""

import functools
import os
import tomllib
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import UserError

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
        made = []
        for role, template in _templates(path).items():
            try:
                text = template.render(variables).strip()
            except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
                raise UserError(f"{path}: {role} cannot be filled in ({error}): mend the template") from None
            made += [{"role": role, "content": text}] if text else []
        return made


@functools.cache
def _templates(path: Path) -> dict[str, jinja2.Template]:
    """The templates `system` and `user` of a file."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: a folder of prompts needs this file") from None
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
