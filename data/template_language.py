"""The jinja2 dialect of chat templates, as Hugging Face defines it, with its `{% generation %}` block."""

import functools
import json
from typing import NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox

from .errors import UserError

# Variables that a generation block writes before and after what stands in it.
BEGIN_VARIABLE, END_VARIABLE = "generation_begin", "generation_end"


class CompiledTemplate(NamedTuple):
    """A chat template ready to render, and what its source says about itself."""

    template: jinja2.Template
    marks_generation: bool  # it has a generation block
    reads_input: bool  # it knows the `input` of a message


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: writes what stands in between, and a variable before and after it."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            jinja2.nodes.Output([jinja2.nodes.Name(variable, "load", lineno=line)], lineno=line)
            for variable in (BEGIN_VARIABLE, END_VARIABLE)
        )
        return [begin, *body, end]


@functools.lru_cache(maxsize=64)
def compile_template(source: str, name: str) -> CompiledTemplate:
    """Compile as Hugging Face does: sandboxed, with its whitespace rules, loop controls and `tojson`.

    Its `strftime_now` is left out: templates that print today's date then fall back to a fixed one, and a conversation
    gives the same tokens on every day.

    Raises:
        UserError: `source` is not valid jinja; `name` tells which template it is.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise_exception
    try:
        tree = environment.parse(source)
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template {name}, line {error.lineno}: {error.message}") from None
    variables = {node.name for node in tree.find_all(jinja2.nodes.Name)}
    attributes = {node.attr for node in tree.find_all(jinja2.nodes.Getattr)}
    keys = {item.arg.value for item in tree.find_all(jinja2.nodes.Getitem) if isinstance(item.arg, jinja2.nodes.Const)}
    return CompiledTemplate(template, BEGIN_VARIABLE in variables, "input" in attributes | keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
