"""Renders a chat template so that the origin of every character of the text is known, within limits.

A template is compiled twice: once as in transformers, and once in an environment in which every text made from a
`Traced` text is traced. Both must give the same text, or the conversation is refused.

Texts are made in few ways: by constants of the template, methods of strings, operators, filters, and joining (`{{ … }}`
and `~`). This module replaces all of them by traced versions. The result of any other operation is blended, so no text
of a message is ever taken for the template's.
"""

import functools
import itertools
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jinja2
import jinja2.compiler
import jinja2.sandbox

from ..errors import UserError
from . import traced_text
from .template_language import CodeGenerator, GenerationBlock, PlainEnvironment, environment, to_json
from .template_limits import LimitReached, budget, check_bits, check_output, check_size, check_source, limited
from .traced_text import Traced, Untraceable, blend, blend_nested, mark_block, origins_of, traced

_CALL_STEPS = 8  # steps for a call or a filter
_COUNT_ITERATIONS = "each iteration"  # name of a filter around the iterable of every loop; no template can spell it
_SIZE_FILTERS = ("center", "indent", "batch", "slice", "truncate", "wordwrap", "round")  # filters that take a length
_ITERATING_FILTERS = {"batch", "groupby", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr"}
_ITERATING_FILTERS |= {"slice", "sort", "sum", "unique"}  # filters that iterate over a list or a text


_DICT_ATTRIBUTES = frozenset(dir(dict))
_STR_METHODS = frozenset(name for name in dir(str) if not name.startswith(("_", "format")))  # allowed by the sandbox


class CompiledTemplate(NamedTuple):
    """A compiled chat template, and facts about its source."""

    name: str  # for messages
    plain: jinja2.Template  # compiled as in transformers
    tracing: jinja2.Template  # compiled with tracing
    marks_generation: bool  # whether it has a generation block
    variables: frozenset[str]  # names of the variables in it
    keys: frozenset[str]  # names of attributes and all string constants in it
    is_verified: bool  # tests show that tracing does not change its output: `plain` need not be compared

    def render(self, variables: Mapping[str, Any], said: int) -> str:
        """The text for plain variables.

        Args:
            variables: the template's variables, not traced.
            said: the number of characters in the variables, for the limit of the output.

        Raises:
            UserError: the template refuses the conversation, fails, or exceeds a limit.
        """
        return str.__str__(self._render(self.tracing, variables, said))

    def trace(self, variables: Mapping[str, Any], plain: Mapping[str, Any], said: int) -> str:
        """The text with the origin of every character.

        Args:
            variables: the template's variables, with traced texts.
            plain: the same variables with plain texts.
            said: the number of characters in the variables, for the limit of the output.

        Raises:
            UserError: as `render`, or the text differs from the one without tracing.
        """
        text = self._render(self.tracing, variables, said, plain)
        if not self.is_verified and self._render(self.plain, plain, said) != text:
            raise UserError(
                f"chat template {self.name} writes another text when it is traced, so it is not known which text is "
                "whose: write it without the filters escape and safe, and without random choices"
            )
        return text

    def _render(
        self,
        template: jinja2.Template,
        variables: Mapping[str, Any],
        said: int,
        plain: Mapping[str, Any] | None = None,
    ) -> str:
        """The output of one of the two compiled templates, within limits.

        Args:
            template: `self.plain` or `self.tracing`.
            variables: the template's variables.
            said: the number of characters in the variables.
            plain: the same variables without traces, if `variables` are traced: an error then comes from the plain
                template.
        """
        try:
            with limited():
                text = template.render(variables)
            check_output(len(text), said)
            return text
        except Exception as error:  # a template is foreign code and may raise anything
            if plain is not None and not isinstance(error, LimitReached | Untraceable):
                self._render(self.plain, plain, said)  # raises the same error, but with plain texts in its message
            line = " ".join(str(error).split())
            if not line or isinstance(error, LookupError | RecursionError | MemoryError):
                line = f"{type(error).__name__} {line}".strip()
            kind = LimitReached if isinstance(error, LimitReached) else UserError
            raise kind(f"chat template {self.name}: {line}") from None


@functools.lru_cache(maxsize=64)
def compile_template(source: str, name: str, *, is_verified: bool = False) -> CompiledTemplate:
    """Compiles a chat template.

    Args:
        source: its jinja source.
        name: its name, for messages.
        is_verified: whether tests show that tracing does not change its output.

    Raises:
        UserError: `source` is not valid jinja.
    """
    tracing = environment(_TracingEnvironment, _TracedGenerationBlock)
    tracing.trace_filters()
    plain = environment(PlainEnvironment, GenerationBlock)
    try:
        check_source(source)
        with limited():
            tree = plain.parse(source)
            templates = plain.from_string(source), tracing.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template {name}, line {error.lineno}: {error.message}") from None
    except Exception as error:  # nested too deeply for jinja's parser or for Python's
        raise UserError(f"chat template {name} cannot be compiled: {' '.join(str(error).split())}") from None
    if next(tree.find_all(jinja2.nodes.EvalContextModifier), None):
        raise UserError(f"chat template {name} has an autoescape block, which is not supported: remove it")
    nodes = jinja2.nodes
    keys = {node.attr for node in tree.find_all(nodes.Getattr)}
    keys |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return CompiledTemplate(
        name,
        *templates,
        marks_generation=next(tree.find_all(nodes.ExtensionAttribute), None) is not None,
        variables=frozenset(node.name for node in tree.find_all(nodes.Name)),
        keys=frozenset(keys),
        is_verified=is_verified,
    )


class _TracedGenerationBlock(GenerationBlock):
    """A generation block that marks the text inside it."""

    def write(self, caller: Callable[[], str]) -> str:
        """The body of the block, with its characters marked as inside a block."""
        current = budget()
        current.blocks += 1
        return mark_block(caller(), 1 + current.blocks % 2)


# Writing and joining --------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """The text that `{{ value }}` writes."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, int | float | jinja2.Undefined):
        return str(value)
    leaves = list(_leaves(value))
    return blend_nested(str(value), leaves)


def _leaves(value: Any) -> Iterator[str]:
    """The strings inside a value. Each item counts as a step, since a short template can build a list without end."""
    left = [value]
    while left:
        budget().step()
        item = left.pop()
        if isinstance(item, str):
            budget().charge(len(item))
            yield item
        elif isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            left += item
        elif not (item is None or isinstance(item, int | float | range | jinja2.Undefined)):
            raise Untraceable(f"it writes an object of type {type(item).__name__}, which is not traced: write strings")


def _counted(value: Any) -> Any:
    """The value itself, with a step for each item inside it: comparing nested lists can take exponential time."""
    left = [value]
    while left:
        budget().step()
        item = left.pop()
        left += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
    return value


def _concat(parts: Iterable[str]) -> str:
    """The joined parts, traced."""
    parts = list(parts)
    budget().charge(sum(map(len, parts)))
    return traced_text.concat(parts)


def _each(values: Iterable) -> Iterator:
    """The items of an iterable, each counted as a step."""
    step = budget().step
    for value in values:
        step()
        yield value


def _as_traced(text: str) -> Traced:
    return text if type(text) is Traced else traced(text, origins_of(text))


# Methods of texts -----------------------------------------------------------------------------------------------------


def _method(text: str, name: str, arguments: list) -> Callable:
    """The method `name` of a text, within limits, and traced if it takes other texts.

    Args:
        text: the text.
        name: the name of the method.
        arguments: the arguments that the template passes.
    """
    match name:
        case "join":
            return functools.partial(_join, text)
        case "replace":
            return functools.partial(_replace, text)
        case "center" | "ljust" | "rjust" | "zfill" | "expandtabs":
            sizes = [value for value in arguments if isinstance(value, int)]
            check_size(max([0, *sizes]) * (text.count("\t") if name == "expandtabs" else 1))
            return getattr(_as_traced(text), name)
        case "split" | "rsplit" | "splitlines":
            _count_parts(text, next((value for value in arguments if isinstance(value, str)), None))
        case "translate" | "encode":
            raise Untraceable(f"it calls {name} on a text, which cannot be traced: remove the call")
    return getattr(text, name)


def _count_parts(text: str, border: str | None) -> None:
    """Counts a step for each part into which `border` splits the text; None splits at white space."""
    budget().step(text.count(border) if border else sum(map(str.isspace, str.__str__(text))))


def _join(text: str, parts: Iterable[str]) -> str:
    """`text.join(parts)`, traced and within limits."""
    parts = list(_each(parts))
    budget().charge(len(text) * len(parts) + sum(map(len, parts)))
    return _as_traced(text).join(parts)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    """`text.replace(old, new, count)`, traced and within limits."""
    _count_parts(text, old)
    budget().charge(len(text) + text.count(old) * max(0, len(new) - len(old)))
    return _as_traced(text).replace(old, new, count)


def _percent(template: str, values: Any) -> str:
    """`template % values`, traced and within limits."""
    leaves = list(_leaves(values))
    asked = re.findall(r"\d+", template)
    if "*" in template and isinstance(values, tuple):
        asked += [str(value) for value in values if isinstance(value, int)]
    check_size(sum(int(digits[:9]) for digits in asked))
    budget().charge(len(template) + sum(map(len, leaves)))
    return traced_text.percent(template, values)


def _format(text: str, formatter: jinja2.sandbox.SandboxedFormatter, *args: Any, **kwargs: Any) -> str:
    """`text.format(*args, **kwargs)`, traced. Values with a format or a conversion in their field are blended."""
    parts, unnumbered = [], 0
    for literal, field, spec, conversion in formatter.parse(text):
        parts.append(literal)
        if field is None:
            continue
        if not field:
            field, unnumbered = str(unnumbered), unnumbered + 1
        value, _ = formatter.get_field(field, args, kwargs)
        leaves = list(_leaves(value))
        if spec or conversion:
            spec = formatter.vformat(spec, args, kwargs)
            check_size(sum(int(digits[:9]) for digits in re.findall(r"\d+", spec)))
            written = format(formatter.convert_field(value, conversion), spec)
            parts.append(blend(written, *leaves))
        else:
            parts.append(_text(value))
    result = _concat(parts)
    return blend(str.__str__(result), text, result) if type(text) is Traced else result


# Filters --------------------------------------------------------------------------------------------------------------


def _traced_filter(name: str, filter: Callable) -> Callable:
    """The filter `filter` within limits. A result that is not traced is blended from all texts among the arguments."""
    first = 1 if getattr(filter, "jinja_pass_arg", None) else 0

    @functools.wraps(filter)
    def tracing_filter(*args, **kwargs):
        current = budget()
        current.step(_CALL_STEPS)
        if name in _SIZE_FILTERS:
            _check_sizes([*args[first:], *kwargs.values()])
        if name in _ITERATING_FILTERS and args[first:] and args[first]:
            args = (*args[:first], _each(args[first]), *args[first + 1 :])
        result = filter(*args, **kwargs)
        if isinstance(result, str):
            current.charge(len(result))
            if type(result) is not Traced:
                given = [*args[first:], *kwargs.values()]
                if not any(result is value for value in given):
                    return blend(result, *(value for value in given if isinstance(value, str)))
        return result

    return tracing_filter


def _check_sizes(given: list) -> None:
    """Raises LimitReached if the arguments of a filter ask for too long a text."""
    check_size(max([0, *(value for value in given[1:] if isinstance(value, int))]))
    texts = [len(value) for value in given if isinstance(value, str)]
    check_size(math.prod(texts) // 8 if texts[1:] else 0)  # one text may be inserted between all characters of another


@jinja2.pass_environment
def _join_filter(env, value, d="", attribute=None):
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(env, attribute), value)
    return _join(_text(d), map(_text, value))


def _replace_filter(s, old, new, count=None):
    return _replace(_text(s), _text(old), _text(new), -1 if count is None else count)


def _indent_filter(s, width=4, first=False, blank=False):
    indention = width if isinstance(width, str) else " " * width
    top, *rest = (_text(s) + "\n").splitlines()
    rest = [indention + line if line or blank else line for line in rest]
    return _join("\n", [indention + top if first else top, *rest])


def _format_filter(value, *args, **kwargs):
    return _percent(_text(value), kwargs or args)


def _to_json_filter(value, **options):
    leaves = list(_leaves(value))
    indent = options.get("indent") or 0
    check_size((len(indent) if isinstance(indent, str) else indent) * (1 + len(leaves)))
    return blend_nested(to_json(value, **options), leaves)


def _blended_filter(filter):
    """A filter that takes any value and writes all strings inside it as one blended text."""

    def written(value):
        leaves = list(_leaves(value))
        return blend_nested(filter(value), leaves)

    return written


@jinja2.pass_environment
def _sum_filter(env, iterable, attribute=None, start=0):
    if isinstance(start, list):
        lists = iterable if attribute is None else map(jinja2.filters.make_attrgetter(env, attribute), iterable)
        return [*start, *_each(itertools.chain.from_iterable(lists))]
    if not isinstance(start, int | float):
        raise Untraceable("it calls the filter sum on values that are neither numbers nor lists")
    return jinja2.filters.sync_do_sum(env, iterable, attribute, start)


_FILTERS = {
    "format": _format_filter,
    "indent": _indent_filter,
    "join": _join_filter,
    "pprint": _blended_filter(jinja2.filters.do_pprint),
    "replace": _replace_filter,
    "string": _text,
    "sum": _sum_filter,
    "tojson": _to_json_filter,
    "urlencode": _blended_filter(jinja2.filters.do_urlencode),
}


# The environment ------------------------------------------------------------------------------------------------------


class _CodeGenerator(CodeGenerator):
    """Compiles `{{ … }}` and `~` to calls of `environment.text` and `environment.concat`, not `str` and `str.join`.

    Lists, tuples and dicts of the template are counted by `environment.counted`.
    """

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.concat((")
        for child in node.nodes:
            self.write("environment.text(")
            self.visit(child, frame)
            self.write("), ")
        self.write("))")

    def _output_child_pre(self, node: jinja2.nodes.Expr, frame: jinja2.compiler.Frame, finalize: Any) -> None:
        self.write("environment.text(")

    def visit_List(self, node: jinja2.nodes.List, frame: jinja2.compiler.Frame) -> None:
        self._counted(super().visit_List, node, frame)

    def visit_Tuple(self, node: jinja2.nodes.Tuple, frame: jinja2.compiler.Frame) -> None:
        visit = super().visit_Tuple
        self._counted(visit, node, frame) if node.ctx == "load" else visit(node, frame)

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: jinja2.compiler.Frame) -> None:
        self._counted(super().visit_Dict, node, frame)

    def _counted(self, visit: Callable, node: jinja2.nodes.Node, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.counted(")
        visit(node, frame)
        self.write(")")


class _TracingEnvironment(PlainEnvironment):
    """An environment that keeps texts traced, and counts the steps and characters that a template takes."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_concat)
    text = staticmethod(_text)
    counted = staticmethod(_counted)

    def trace_filters(self) -> None:
        """Replaces jinja2's filters by those of this module, and puts all filters within limits."""
        self.filters = {name: _traced_filter(name, filter) for name, filter in (self.filters | _FILTERS).items()}
        self.filters[_COUNT_ITERATIONS] = _each
        del self.filters["xmlattr"]  # builds text from an object in a way that is not traced

    def getattr(self, obj, attribute):
        if type(obj) is dict and attribute in obj and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute]  # a shortcut: jinja2 gets there through an exception
        if type(obj) in (str, Traced) and attribute in _STR_METHODS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(
                loop.iter, _COUNT_ITERATIONS, [], [], None, None, lineno=loop.lineno, environment=self
            )
        return tree

    def call(__self, __context, __callee, *args, **kwargs):  # any other name may be that of an argument
        """Calls `__callee` within limits; methods of strings are replaced by traced ones."""
        budget().step(_CALL_STEPS)
        if type(__callee) in (types.BuiltinMethodType, types.MethodType) and isinstance(__callee.__self__, str):
            __callee = _method(__callee.__self__, __callee.__name__, [*args, *kwargs.values()])
        elif type(__callee) is types.MethodType and isinstance(__callee.__self__, GenerationBlock):
            return __callee(kwargs["caller"])
        result = super().call(__context, __callee, *args, **kwargs)
        if isinstance(result, str):
            budget().charge(len(result))
        return _counted(result) if isinstance(result, dict) else result

    def call_binop(self, context, operator, left, right):
        """The result of +, *, ** or %, traced and within limits."""
        if operator == "%" and isinstance(left, str):
            return _percent(left, right)
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length()
            check_bits(bits * right if operator == "**" else bits + right.bit_length())
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(repeated, str | list | tuple) and isinstance(times, int):
                    check_size(len(repeated) * times)
                    budget().charge(len(repeated) * max(0, times))
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            budget().charge(len(left) + len(right))
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value):
        if super().wrap_str_format(value) is None:
            return None
        if value.__name__ == "format_map":
            raise Untraceable("it calls format_map on a text, which cannot be traced: call format")
        return functools.partial(_format, value.__self__, jinja2.sandbox.SandboxedFormatter(self))
