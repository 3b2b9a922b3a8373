"""Types, ranges and choices of a config's leaves: what is refused, in which words, and that no leaf goes without."""

import typing
from dataclasses import dataclass, field
from typing import Annotated

import ml_collections
import pytest

from camelid.errors import UserError
from camelid.settings.leaves import (
    Count,
    NotNegative,
    OneOf,
    Only,
    Path,
    Positive,
    Range,
    Regex,
    Share,
    Units,
    Unset,
)
from camelid.settings.length import Length
from camelid.settings.sections import leaves_of, read, read_arguments, to_config, with_defaults
from camelid.train.lora_settings import LoraSettings


@dataclass(frozen=True)
class Inner:
    weight: NotNegative
    name: Path = "x"


@dataclass(frozen=True)
class Section:
    lr: Annotated[float, Range(least=0, most=100)] = 1.0
    clip: Annotated[Positive | None, Unset("no clipping")] = None
    b2: Annotated[float | None, Range(least=0, below=1)] = None
    eps: Annotated[float, Range(above=0, most=1)] = 1e-8
    share: Share = 0.5
    rows: Annotated[int, Range(least=1, most=2**24)] = 16
    epochs: Count = 1
    flag: bool = False
    kind: Annotated[str, OneOf("sigmoid", "simpo")] = "sigmoid"
    gamma: Annotated[NotNegative, Only("kind", "simpo", default=0.5)] = 0.5
    rules: list[tuple[Regex, bool]] | None = None
    layers: Count | list[int] | None = None
    total: Annotated[Length | None, Units("steps", "percent", least=1)] = None
    span: Annotated[Length | None, Units("tokens")] = None
    inner: Inner | None = None
    many: dict[str, Inner] = field(default_factory=dict)


def problem(**values) -> str:
    """What is said of a section; "" where it holds."""
    try:
        read(ml_collections.ConfigDict(values), Section, "config.s")
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0},
        {"lr": 100.0},
        {"clip": None},
        {"b2": 0.999999},
        {"eps": 1e-30},
        {"kind": "simpo", "gamma": 0.7},
        {"gamma": 0.5},
        {"rules": [("a.*", True)]},
        {"rules": [["a", False]]},
        {"layers": 2},
        {"layers": [-1, 3]},
        {"total_steps": 1e4, "total_percent": None},
        {"span_tokens": 10**13},
        {"clip": 1e20},
        {"inner": {"weight": 0}},
        {"many": {"a": {"weight": 1.0}, "b": {"weight": 2, "name": "y"}}},
    ],
)
def test_values_within_their_ranges_are_accepted(values):
    assert problem(**values) == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1}, "config.s.lr = -1: give a number from 0 to 100"),
        ({"lr": float("nan")}, "config.s.lr = nan: give a number from 0 to 100"),
        ({"lr": float("inf")}, "config.s.lr = inf: give"),
        ({"lr": True}, "config.s.lr = True: give a number"),
        ({"lr": "1"}, "config.s.lr = '1': give a number"),
        ({"lr": None}, "config.s.lr = None: give a number from 0 to 100"),
        ({"lr": [1.0]}, "config.s.lr = [1.0]: give a number"),
        ({"clip": -1}, "config.s.clip = -1: give a number greater than 0, or None for no clipping"),
        ({"clip": 0.0}, "config.s.clip = 0.0: give a number greater than 0, or None for no clipping"),
        ({"b2": 1.0}, "config.s.b2 = 1.0: give a number from 0 to below 1, or None"),
        ({"b2": 1 - 1e-12}, "give a number from 0 to below 1"),  # 1 in float32
        ({"eps": 1e-60}, "config.s.eps = 1e-60: give a number greater than 0, at most 1"),  # 0 in float32
        ({"eps": 1e300}, "give a number greater than 0, at most 1; the largest whole number is"),
        ({"rows": 0}, "config.s.rows = 0: give a whole number from 1 to 16,777,216"),
        ({"share": 1.5}, "config.s.share = 1.5: give a number from 0 to 1"),
        ({"epochs": 2.0}, "config.s.epochs = 2.0: give a whole number from 1 up"),
        ({"epochs": 0}, "config.s.epochs = 0: give a whole number from 1 up"),
        ({"epochs": 2**31}, "give a whole number from 1 up; the largest whole number is 2147483647"),
        ({"epochs": 10**400}, "config.s.epochs = 1000"),
        (
            {"clip": 10**20},
            "give a number greater than 0, or None for no clipping; the largest whole number is 2147483647",
        ),
        ({"total_percent": 10**20}, "config.s.total_percent = 100000000000000000000: give a number greater than 0, at"),
        ({"span_tokens": 10**400}, "give a number from 0 up, or None"),
        ({"flag": 1}, "config.s.flag = 1: give True or False"),
        ({"kind": "simp"}, "config.s.kind: 'simp' is none of sigmoid, simpo; did you mean simpo?"),
        ({"kind": 3}, "config.s.kind = 3: give one of sigmoid, simpo"),
        (
            {"gamma": 0.7, "kind": "sigmoid"},
            "config.s.gamma = 0.7 does nothing where config.s.kind is 'sigmoid': it is for simpo",
        ),
        ({"rules": 5}, "config.s.rules = 5: give a list of (a regular expression, True or False), or None"),
        ({"rules": "a"}, "config.s.rules = 'a': give a list"),
        ({"rules": [("(", True)]}, "config.s.rules = [('(', True)]: give a list of (a regular expression"),
        ({"rules": [("a", 1)]}, "config.s.rules"),
        ({"rules": [("a", True, 3)]}, "config.s.rules"),
        ({"layers": 0}, "config.s.layers = 0: give a whole number from 1 up, a list of whole numbers, or"),
        ({"layers": [1.5]}, "config.s.layers = [1.5]"),
        ({"total_steps": 0}, "config.s.total_steps = 0: give a whole number from 1 up, or None"),
        ({"total_steps": 1.5}, "config.s.total_steps = 1.5: give a whole number"),
        ({"total_percent": 101}, "config.s.total_percent = 101: give a number greater than 0, at most 100, or None"),
        (
            {"total_steps": 3, "total_percent": 5},
            "the config sets config.s.total_steps and config.s.total_percent; unset the one that is not meant, as in "
            "--config.s.total_percent=None",
        ),
        ({"total_tokens": 3}, "nothing reads config.s.total_tokens; did you mean"),
        ({"inner": {"weight": -1}}, "config.s.inner.weight = -1: give a number from 0 up"),
        ({"inner": {}}, "the config has no config.s.inner.weight"),
        ({"inner": 3}, "config.s.inner = 3: give a section of weight, name"),
        ({"many": {"a": {"weight": "1"}}}, "config.s.many.a.weight = '1': give a number from 0 up"),
        ({"many": {"a": 2}}, "config.s.many.a = 2: give a section of weight, name"),
        ({"inner": {"weight": 1, "name": ""}}, "config.s.inner.name = '': give a path or name"),
        ({"inner": {"weight": 1, "nmae": "x"}}, "nothing reads config.s.inner.nmae; did you mean config.s.inner.name?"),
    ],
)
def test_another_value_is_one_line_with_leaf_value_and_range(values, message):
    said = problem(**{"lr": 1.0} | values)
    assert message in said and "\n" not in said and len(said) < 400


def test_of_two_wrong_values_the_one_that_stands_first_in_the_section_is_told():
    """A config may have made the second from the first."""
    with pytest.raises(UserError, match=r"config\.lora\.targets = \[\('x', -4\)\]"):
        read(ml_collections.ConfigDict({"alpha": -8.0, "targets": [("x", -4)]}), LoraSettings, "config.lora")


def test_a_section_is_read_into_its_dataclass_and_written_as_a_config():
    given = ml_collections.ConfigDict({"total_percent": 5, "inner": {"weight": 2, "name": "a"}})
    section = read(given, Section, "config.s")
    assert section == Section(total=Length(5, "percent"), inner=Inner(2, "a"))
    config = to_config(section)
    assert (config.total_steps, config.total_percent, config.span_tokens, config.lr) == (None, 5, None, 1.0)
    assert read(config, Section, "config.s") == section
    assert {name for name, _ in leaves_of(config, Section)} >= {"config.total_steps", "config.inner.weight"}


def test_a_leaf_that_was_deleted_is_missed_but_not_in_entries_of_the_user_s():
    @dataclass(frozen=True)
    class Whole:
        inner: Inner = Inner(1.0)
        maybe: Inner | None = None
        many: dict[str, Inner] = field(default_factory=dict)

    given = to_config(Whole())
    given.maybe, given.many = {"weight": 2.0}, {"a": {"weight": 3.0}}
    assert read(given, Whole, complete=True) == Whole(maybe=Inner(2.0), many={"a": Inner(3.0)})
    del given.inner.name
    assert read(given, Whole).inner == Inner(1.0)
    with pytest.raises(UserError, match=r"^the config has no config\.inner\.name"):
        read(given, Whole, complete=True)


def test_a_required_length_is_given_in_one_unit():
    @dataclass(frozen=True)
    class Lasting:
        total: Annotated[Length, Units("steps", "epochs", least=1)] = None

    assert read({"total_epochs": 2.5}, Lasting).total == Length(2.5, "epochs")
    for given in ({}, {"total_steps": None}):
        with pytest.raises(UserError, match=r"set one of config\.total_steps, config\.total_epochs: .* none of them"):
            read(given, Lasting)


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (Length(7, "steps"), 7),
        (Length(2.5, "epochs"), 250),
        (Length(10_000, "tokens"), 20),
        (Length(7, "percent"), 70),  # 1000 * 7 / 100 in floats is not 70 exactly
        (Length(0.01, "percent"), 1),  # never rounded to nothing
        (Length(0, "percent"), 0),
    ],
)
def test_a_length_in_any_unit_becomes_steps(length, steps):
    found = length.steps(steps_per_epoch=100, tokens_per_step=512, total_steps=1000)
    assert found == steps and isinstance(found, int)


@pytest.mark.parametrize("unit", ["epochs", "tokens", "percent", "seconds"])
def test_a_unit_that_cannot_be_converted_is_one_line(unit):
    with pytest.raises(UserError, match=rf"^config\.x_{unit}: {unit} cannot be converted to steps here; give steps$"):
        Length(3, unit, f"config.x_{unit}").steps()


def test_more_steps_than_a_device_counts_are_refused():
    with pytest.raises(
        UserError, match=r"^config\.total_tokens = 1e\+20: these are 9\.77e\+16 steps; give at most 2147"
    ):
        Length(1e20, "tokens", "config.total_tokens").steps(tokens_per_step=1024)


@pytest.mark.parametrize("name", [1, "", "a/b", "a\n"])
def test_names_that_the_user_chooses_are_words(name):
    assert read({"many": {"a-b.ü": {"weight": 1.0}}}, Section, "config.s").many == {"a-b.ü": Inner(1.0)}
    with pytest.raises(UserError, match=r"^config\.s\.many: the name .* is not made of letters, digits and \. _ -$"):
        read({"many": {name: {"weight": 1.0}}}, Section, "config.s")


def test_a_section_s_own_check_names_where_it_stands():
    @dataclass(frozen=True)
    class Ordered:
        low: NotNegative = 0.0
        high: NotNegative = 1.0

        def check(self, where):
            if self.low > self.high:
                raise UserError(f"{where}.low is above {where}.high")

    @dataclass(frozen=True)
    class Whole:
        parts: dict[str, Ordered]

    assert read({"parts": {"a": {}}}, Whole).parts == {"a": Ordered()}
    with pytest.raises(UserError, match=r"^config\.parts\.a\.low is above config\.parts\.a\.high$"):
        read({"parts": {"a": {"low": 2.0}}}, Whole)


def test_defaults_are_filled_in_everywhere_and_what_is_unknown_stays():
    given = {"lr": 2.0, "gone": 3, "total_steps": 4, "many": {"a": {"weight": 1.0}}}
    filled = with_defaults(given, Section)
    assert {name: filled[name] for name in given} == given | {"many": {"a": {"weight": 1.0, "name": "x"}}}
    assert filled["share"] == 0.5 and "total_percent" not in filled and "total" not in filled


def test_the_arguments_of_a_function_are_a_section_too():
    def evaluate(model, *, count: Count = 3, anything=None):
        return {}, []

    assert read_arguments({"count": 2, "anything": "x"}, evaluate, "config.evals.e") == {"count": 2, "anything": "x"}
    with pytest.raises(UserError, match=r"config\.evals\.e\.count = 0: give a whole number from 1 up"):
        read_arguments({"count": 0}, evaluate, "config.evals.e")
    assert typing.get_type_hints(evaluate)["count"] is int
