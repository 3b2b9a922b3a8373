"""Prompts in files that users can replace: TOML with `system` and `user`, Jinja templates of the two messages."""

import functools
import tomllib
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import UserError

ROLES = ("system", "user")


def prompt_templates(path: Path, folder_has: str) -> dict[str, jinja2.Template]:
    """The templates of a file by role.

    Args:
      path: the file.
      folder_has: what a folder of prompts has, for the message that the file is missing.

    Raises:
      UserError: the file cannot be read, is no TOML, lacks `system` or `user`, or one of the two is no template.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: a folder of prompts has {folder_has}") from None
    except ValueError as error:
        raise UserError(f"{path}: no TOML in UTF-8 ({error}): mend the file") from None
    made = {}
    for role in ROLES:
        if not isinstance(found.get(role), str):
            raise UserError(f"{path}: there is no text `{role}`: add one")
        try:
            made[role] = _template(found[role])
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{path}: line {error.lineno} of {role}: {error.message}: mend the template") from None
    return made


def prompt_messages(path: Path, folder_has: str, variables: dict[str, Any]) -> list[dict[str, str]]:
    """The messages of a prompt whose templates are filled in; one without text is left out.

    Raises UserError as `prompt_templates` does, and for a template that cannot be filled in.
    """
    messages = []
    for role, template in prompt_templates(path, folder_has).items():
        try:
            text = template.render(variables).strip()
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise UserError(f"{path}: {role} cannot be filled in ({error}): mend the template") from None
        messages += [{"role": role, "content": text}] if text else []
    return messages


@functools.cache
def _template(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source)
