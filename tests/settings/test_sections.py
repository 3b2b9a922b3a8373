"""Every setting of every recipe: it is described where it stands, it has a default, and something uses it."""

import ast
import dataclasses
import functools
import inspect
import itertools
from pathlib import Path

import pytest

import camelid
from camelid.launch.recipes import RECIPES
from camelid.settings.leaves import fields_of, is_section, members_of
from camelid.settings.sections import read, to_config

ROOT = Path(camelid.__file__).parent
PASSED_ON_WHOLE = {"ModelSettings", "RopeScalingSettings", "MeshSettings"}
"""Sections whose fields are keyword arguments of something else, by `vars`."""


def sections(kind: type) -> set[type]:
    """A config's class and the classes of all sections in it."""
    found = {kind}
    for annotation in fields_of(kind).values():
        for member in members_of(annotation):
            inner = [member, *getattr(member, "__args__", ())]
            found |= {each for x in inner if is_section(x) for each in sections(x)}
    return found


SECTIONS = sorted({x for recipe in RECIPES.values() for x in sections(recipe.config)}, key=lambda kind: kind.__name__)


def described(kind: type) -> set[str]:
    """The fields under which a class, or one that it comes from, has a docstring."""
    names = set()
    for each in kind.__mro__[:-1]:
        body = ast.parse(inspect.getsource(each)).body[0].body
        for field, text in itertools.pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text and str(text.value.value).endswith("."):
                names.add(field.target.id)
    return names


@functools.cache
def used_names() -> set[str]:
    """All attributes that the package reads, and all strings, which may be names for getattr."""
    names = set()
    for floor in ("model", "data", "checkpoints", "train", "rlhf", "launch"):
        for path in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.add(node.value)
    return names


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_and_used(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    assert fields - described(kind) == set()
    if kind.__name__ not in PASSED_ON_WHOLE:
        assert fields - used_names() == set()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_defaults_of_a_recipe_s_config_are_those_of_its_class(recipe):
    default = RECIPES[recipe].config()
    config = to_config(default)
    assert config.recipe == default.recipe and config.optim.lr == default.optim.lr
    sections = {name: getattr(default, name) for name, kind in fields_of(type(default)).items() if is_section(kind)}
    for name in sections.keys() - {"data", "model"}:  # which a config has to fill in
        assert read(config[name], type(sections[name])) == sections[name], name
