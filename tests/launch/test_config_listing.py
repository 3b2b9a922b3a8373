"""`camelid configs`: shipped configs by name, and every leaf of a config with its default, range and meaning."""

import json
import re
import sys
from dataclasses import dataclass

import pytest

from camelid.errors import UserError
from camelid.launch import config_listing
from camelid.launch.cli import main
from camelid.launch.config_listing import first_sentence, listing_of
from camelid.launch.recipes import RECIPES, read_config
from camelid.settings.config_files import load_config
from camelid.settings.config_names import shipped_configs
from camelid.settings.leaves import Count
from camelid.settings.meanings import ABSENT, meanings_of


def printed(capsys, *argv) -> str:
    assert main(["configs", *argv]) == 0
    return capsys.readouterr().out


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The current folder, with a config, own.py, of a recipe of one's own, recipe.py."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_recipe.py").write_text(
        "from dataclasses import dataclass\n\nfrom camelid.settings.leaves import Positive\n"
        "from camelid.train.run import Result, Run\nfrom camelid.train.run_config import RunConfig\n\n\n"
        "@dataclass(frozen=True)\nclass OwnConfig(RunConfig):\n"
        '    recipe: str = "own_recipe.py:train"\n    """Its name."""\n\n'
        '    sharpness: Positive = 2.0\n    """How sharp\n    it is."""\n\n\n'
        "def train(run: Run[OwnConfig]) -> Result: ...\n\n\ndef untyped(run): ...\n"
    )
    (tmp_path / "own.py").write_text(
        '"""Sharpens it. By much.\n\n    camelid train --config=own.py\n"""\n\nfrom own_recipe import OwnConfig\n\n'
        "from camelid.settings.config_files import parse_arguments\n"
        "from camelid.settings.sections import to_config\n\n\n"
        "def get_config(arg=None):\n    a = parse_arguments(arg, steps=None, rank=8)\n    c = to_config(OwnConfig())\n"
        "    c.total_steps = int(a.steps)\n    return c\n"
    )
    yield tmp_path
    sys.modules.pop("own_recipe", None)


@pytest.mark.parametrize("name", shipped_configs())
def test_every_leaf_of_every_shipped_config_is_explained(name):
    listing = listing_of(name)
    assert listing.problem == "" and listing.arguments and first_sentence(listing.about).endswith(".")
    assert listing.command.startswith(("camelid train --config=", "camelid curate "))
    leaves = [leaf for by_phase in listing.leaves.values() for leaf in by_phase.values()]
    assert len(leaves) > 20
    for leaf in leaves:
        assert leaf.meaning.rstrip('"').endswith(".") and leaf.allowed not in ("", "nothing", "any value"), leaf
        assert not re.search(r" for .*\b(is|are|stay|goes|sent)\b", leaf.allowed), f"{leaf}: None for a noun, no clause"
        assert not (leaf.meaning.startswith("Metric") and "path" in leaf.allowed), leaf


def test_shipped_configs_are_listed_by_folder_without_running_them(capsys, monkeypatch):
    monkeypatch.setattr(config_listing, "load_phases", None)
    table = printed(capsys)
    assert all(name in table for name in shipped_configs())
    only = printed(capsys, "sft")
    assert "sft/lora" in only and "ppo/" not in only
    names = json.loads(printed(capsys, "dpo", "--json"))
    assert [each["name"] for each in names] == ["dpo/pairs", "dpo/primer"] and names[0]["about"].startswith("DPO")


def test_a_config_is_shown_with_docstring_arguments_command_and_leaves(capsys):
    shown = printed(capsys, "sft/lora:rank=4", "--all", "--config.optim.lr=1e-3")
    for text in (
        "Tunes an existing model on your own records with low-rank adapters.\n",
        "rank=16, lr=0.0002, quantize=",
        "Start it: camelid train --config=sft/lora --workdir=DIR",
        "config.lora: Low-rank adapters.",
        "config.lora.targets = [('layers/(attention|mlp)/.*', 4)] (default: None)",
        "config.optim.lr = 0.001 (default: 0.0003)\n      The highest learning rate. Give a number from 0 to 100.",
        "config.total_epochs = 1.0 (default: None)",
        "config.data.mixture.source0.weight = 1.0\n",
        "config.model.rope_scaling.kind (required)",
        "config.seed = 0\n",
    ):
        assert text in shown, text


def test_of_a_config_are_shown_what_it_changes_and_its_sections(capsys):
    shown = printed(capsys, "sft/lora:rank=4", "--config.optim.lr=1e-3")
    for text in (
        "Start it: camelid train --config=sft/lora --workdir=DIR",
        "config.optim.lr = 0.001 (default: 0.0003)\n      The highest learning rate.\n",
        "config.lora            8   Low-rank adapters.\n",
        "`camelid configs sft/lora model` lists a section, and `camelid configs sft/lora --all` every leaf.",
    ):
        assert text in shown, text
    assert "config.seed" not in shown and "Give " not in shown and len(shown.splitlines()) < 80
    assert main(["configs", "sft/lora", "lr", "--all"]) == 2
    assert "--all lists every leaf, and PATTERN lr some" in capsys.readouterr().err


def test_what_is_piped_is_neither_wrapped_nor_padded(capsys):
    tables = (printed(capsys), printed(capsys, "sft/primer"), printed(capsys, "sft/primer", "--all"))
    assert all(line == line.rstrip() for table in tables for line in table.splitlines())
    meaning = meanings_of(RECIPES["sft"].config)["loss"]
    assert f"{meaning} Give a function package.module:name or file.py:name, or None.\n" in tables[-1]


@pytest.mark.parametrize(
    ("pattern", "named", "absent"),
    [
        ("learning_rate", "config.optim.lr = ", "config.seed"),
        ("Learning rate", "config.optim.lr = ", "config.seed"),
        ("early stop", "config.early_stopping.patience = ", "config.optim.lr"),
        ("early_stop", "config.early_stopping.patience = ", "config.optim.lr"),
        ("rank", "  rank = 16\n      Argument of the config's file: --config=sft/lora:rank=VALUE", "config.optim.lr"),
        ("rank", "config.lora.targets = ", "config.seed"),
        ("quantize", "config.lora.quantize = None", "config.seed"),
        ("held out for evaluation", "config.data.heldout = ", "config.seed"),
        ("optim", "config.optim.b1 = ", "config.seed"),
        ("bf16", "config.model.dtype = ", "config.seed"),
    ],
)
def test_leaves_are_found_by_names_synonyms_arguments_and_meanings(capsys, pattern, named, absent):
    shown = printed(capsys, "sft/lora", pattern)
    assert named in shown and absent not in shown


def test_a_pattern_chooses_leaves_and_json_has_them_for_programs(capsys):
    found = json.loads(printed(capsys, "adapt/domain:document_epochs=2", "total_epochs|evals", "--json"))
    assert [(each["name"], each["phase"], each["value"], each["changed"]) for each in found["leaves"]] == [
        ("config.total_epochs", "documents", 2.0, True),
        ("config.total_epochs", "questions", 1.0, True),
    ]
    assert found["leaves"][0]["allowed"] == "a number greater than 0, or None"
    assert "= 2.0 in documents, 1.0 in questions" in printed(capsys, "adapt/domain:document_epochs=2", "total_epochs")
    assert main(["configs", "sft/lora", "lrr"]) == 2
    assert "sft/lora has no such leaf; did you mean optim.lr?" in capsys.readouterr().err


def test_a_config_of_one_s_own_lists_the_fields_of_its_own_recipe(own, capsys):
    shown = printed(capsys, "own.py:steps=3", "sharp|total_steps")
    assert "config.sharpness = 2.0\n      How sharp it is. Give a number greater than 0.\n" in shown
    assert "config.total_steps = 3 (default: None)" in shown
    assert main(["configs", "own.py"]) == 2
    out, err = capsys.readouterr()
    assert "Sharpens it. By much." in out and "Arguments, with their defaults: steps=, rank=8" in out
    assert "own.py:15: TypeError" in err and "with other arguments, as in own.py:steps=VALUE" in err
    assert main(["configs", "own.py:steps=3", "--config.recipe=own_recipe.py:untyped"]) == 2
    assert "annotate its argument, as in def untyped(run: Run[MyConfig])" in capsys.readouterr().err


def test_a_flag_makes_a_leaf_that_the_recipe_s_class_has_and_the_file_leaves_out(own, capsys):
    (own / "short.py").write_text(
        "from camelid.settings.sections import to_config\nfrom camelid.train.run_config import RunConfig\n\n\n"
        "def get_config():\n    c = to_config(RunConfig())\n    c.recipe, c.total_steps = 'own_recipe.py:train', 3\n"
        "    c.model.preset = 'nano-test'\n    return c\n"
    )
    assert "config.sharpness = 3.0 (default: 2.0)" in printed(capsys, "short.py", "sharp", "--config.sharpness=3")
    read_config(load_config("short.py", ["--config.sharpness=3"]))
    with pytest.raises(UserError, match=r"config has no config\.sharpness: give --config\.sharpness=2\.0, or write"):
        read_config(load_config("short.py"))
    with pytest.raises(UserError, match=r"sharpness=x: config\.sharpness is of type float, such as 2\.0"):
        load_config("short.py", ["--config.sharpness=x"])
    with pytest.raises(UserError, match=r"there is no config\.sharpnes; did you mean config\.sharpness\?"):
        load_config("short.py", ["--config.sharpnes=3"])
    flags = ["--config.sharpness=3", "--config.recipe=own_recipe.py:train"]
    assert load_config("sft/primer", flags).sharpness == 3.0


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr=1e-3", "did you mean --config.optim.lr=1e-3?"),
        ("optim.lr=1e-3", "did you mean --config.optim.lr=1e-3?"),
        ("config.optim.lr=1e-3", "did you mean --config.optim.lr=1e-3?"),
        ("--learning_rate", "did you mean --config.optim.lr=VALUE?"),
        ("--workdri=x", "did you mean --workdir?"),
    ],
)
def test_a_setting_without_its_prefix_is_told_the_flag_that_it_means(word, meant, capsys, tmp_path):
    for command in ("train", "sweep"):
        assert main([command, "--config=sft/primer", f"--workdir={tmp_path}", word]) == 2
        assert f"unknown argument {word}; {meant} (see `camelid {command} --help`)" in capsys.readouterr().err


def test_the_help_of_a_command_lists_the_config_that_stands_beside_it(own, capsys):
    for argv in (["train", "--config=own.py:steps=3", "--help"], ["data", "show", "-h", "--config", "own.py:steps=3"]):
        with pytest.raises(SystemExit) as ended:
            main([*argv, "--config.sharpness=3"])
        out = capsys.readouterr().out
        assert ended.value.code == 0 and out.startswith("usage: camelid")
        assert "config.sharpness = 3.0 (default: 2.0)" in out
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "config.seed" not in capsys.readouterr().out


@dataclass(frozen=True)
class Base:
    """A class with fields."""

    one: int = 1
    """The first."""
    two: int = 2
    """The second,
    which is longer."""


@dataclass(frozen=True)
class Derived(Base):
    """A class that says something else of a field."""

    two: int = 3
    """Another second."""
    three: int = 4


def test_meanings_are_those_of_the_nearest_class_and_of_arguments():
    assert meanings_of(Derived) == {"one": "The first.", "two": "Another second."}

    def evaluate(model, *, n: Count = 2, long: Count = 3):
        """Measures.

        Args:
          model: the model.
          n: number of
            questions.
          long: their length.

        Returns:
          nothing: at all.
        """

    assert meanings_of(evaluate) == {"model": "The model.", "n": "Number of questions.", "long": "Their length."}
    assert ABSENT != () and first_sentence("A 0.5 b. C.\n\nD.") == "A 0.5 b."
