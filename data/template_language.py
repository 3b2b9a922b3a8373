"""The jinja2 dialect of chat templates as transformers defines it, with its `{% generation %}` block."""

import datetime
import json
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.sandbox

from .template_limits import budget
from .traced_text import blend


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: writes its body. Variables set inside are not visible outside."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("write"), [], [], body).set_lineno(line)

    def write(self, caller: Callable[[], str]) -> str:
        """The text that replaces the block: its body."""
        return caller()


class CodeGenerator(jinja2.compiler.CodeGenerator):
    """Folds no constants at compile time, when the limits on steps and characters are not checked."""

    def _output_child_to_const(self, node: jinja2.nodes.Expr, frame: jinja2.compiler.Frame, finalize: Any) -> str:
        if not isinstance(node, jinja2.nodes.TemplateData | jinja2.nodes.Const):
            raise jinja2.nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class PlainEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox without constant folding, which runs templates on plain strings."""

    code_generator_class = CodeGenerator


def environment(kind: type[PlainEnvironment], generation_block: type[GenerationBlock]) -> PlainEnvironment:
    """An environment like that of transformers: sandboxed, with its whitespace rules, loop controls and functions.

    The filter `random` and the function `lipsum` are missing: the text of a record must not depend on chance.

    Args:
        kind: the class of the environment.
        generation_block: the class for generation blocks.
    """
    extensions = [generation_block, jinja2.ext.loopcontrols]
    made = kind(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False)
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace}
    del made.globals["lipsum"], made.filters["random"]
    return made


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`, which, unlike jinja2's own, escapes nothing for HTML. Options are those of `json.dumps`."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    current = budget()
    current.now = current.now or datetime.datetime.now()
    current.charge(64 * len(format))  # the most that conversions such as %c write
    return blend(current.now.strftime(format), format)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace, which here refuses private attributes."""

    def __init__(*args, **kwargs):  # without named parameters, since a template may set an attribute `self`
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace may not have the private attribute {name!r}")
