"""Flags: units of lengths that exclude each other, and entries of sections whose names users choose."""

import pytest
from ml_collections import ConfigDict

from camelid.errors import UserError
from camelid.launch.recipes import RECIPES
from camelid.settings.leaf_names import UNITS
from camelid.settings.leaves import Units, fields_of, marker_of
from camelid.settings.overrides import change, override
from camelid.tests.settings.test_sections import SECTIONS


def config() -> ConfigDict:
    return ConfigDict(
        {
            "total_steps": 6,
            "total_epochs": None,
            "total_tokens": None,
            "schedule": {"warmup_percent": 10.0, "warmup_steps": None, "name": "cosine"},
            "cost": {"source": None, "lr": 0.1},
            "max_tokens": 64,
            "evals": {"primer": {"per_group": 20}},
            "data": {"mixture": {}, "seq_len": 8},
        }
    ).lock()


def lengths(found: ConfigDict) -> list:
    return [found.total_steps, found.total_epochs, found.total_tokens]


def test_a_length_in_one_unit_unsets_the_others():
    found = override(config(), ["--config.total_tokens=2e6", "--config.schedule.warmup_steps=3"])
    assert lengths(found) == [None, None, 2e6]
    assert (found.schedule.warmup_steps, found.schedule.warmup_percent, found.max_tokens) == (3, None, 64)
    assert lengths(override(config(), ["--config.total_epochs=3", "--config.total_steps=None"])) == [None, 3, None]
    assert lengths(override(config(), ["--config.total_epochs=None"])) == [6, None, None]
    assert lengths(override(config(), ["--config.max_tokens=3"])) == [6, None, None]


def test_two_units_at_once_stay_for_the_reader_to_refuse():
    two = ["--config.total_epochs=3", "--config.total_steps=5"]
    assert lengths(override(config(), two)) == lengths(override(config(), two[::-1])) == [5, 3, None]
    twice = config()
    twice.total_epochs = 1.0
    assert lengths(override(twice, ["--config.total_tokens=9"])) == [6, 1.0, 9]


def test_a_phase_s_own_length_unsets_that_of_the_config():
    found = config()
    change(found, {"total_epochs": 2.0}, "phase")
    assert lengths(found) == [None, 2.0, None]
    change(found, {"total_epochs": 2.0, "total_steps": 3}, "phase")
    assert lengths(found) == [3, 2.0, None]


def test_the_units_of_all_recipes_are_those_that_flags_know():
    """Flags know lengths by the names of leaves: no other leaves may look like the units of one length."""
    assert RECIPES and len(SECTIONS) > 20
    for kind in SECTIONS:
        fields = fields_of(kind)
        lengths = {name: units for name, each in fields.items() if (units := marker_of(each, Units))}
        assert {unit for units in lengths.values() for unit in units.units} <= set(UNITS)
        stems = [name.rpartition("_")[0] for name in fields if name.rpartition("_")[2] in UNITS]
        assert len(set(stems)) == len(stems) and not set(stems) & set(lengths), kind


def test_flags_make_entries_of_open_sections_and_leaves_in_them():
    found = override(
        config(),
        [
            "--config.evals.mine.use=evals.py:short",
            "--config.evals.primer.max_tokens=8",
            "--config.data.mixture.books.weight=2",
            "--config.data.mixture.books.columns={'text': 'body'}",
            "--config.cost.source.task=walks",
        ],
    )
    assert found.evals.to_dict() == {"primer": {"per_group": 20, "max_tokens": 8}, "mine": {"use": "evals.py:short"}}
    assert found.data.mixture.to_dict() == {"books": {"weight": 2, "columns": {"text": "body"}}}
    assert found.cost.source.task == "walks" and found.is_locked


@pytest.mark.parametrize("name", ["en-wiki", "2024", "class", "书", "a_b"])
def test_an_entry_may_have_any_name_of_letters_digits_underscores_and_dashes(name):
    found = override(config(), [f"--config.evals.{name}.n=3"])
    assert found.evals[name].n == 3
    change(found, {f"evals.{name}.n": 4, f"evals.{name}.total_steps": 5}, "phase", anew=True)
    assert override(found, [f"--config.evals.{name}.n=None"]).evals[name].to_dict() == {"n": None, "total_steps": 5}
    assert name not in override(found, [f"--config.evals.{name}=None"]).evals


def test_none_removes_an_entry():
    found = override(config(), ["--config.evals.primer=None"])
    assert found.evals.to_dict() == {}
    with pytest.raises(UserError, match=r"there is no config\.evals\.primr; did you mean config\.evals\.primer"):
        override(config(), ["--config.evals.primr=None"])


@pytest.mark.parametrize(
    ("flags", "evals"),
    [
        (["evals.primer=None", "evals={}"], {}),
        (["evals={}", "evals.primer=None"], {}),
        (["evals=None"], {}),
        (["evals=None", "evals=None", "data.mixture=None"], {}),
        (["evals.primer.per_group=3", "evals=None"], {}),
        (["evals=None", "evals.mine.n=3"], {"mine": {"n": 3}}),
        (["evals.primer=None", "evals.primer.n=3"], {"primer": {"n": 3}}),
        (["evals={'mine': {'n': 3}}", "evals.mine.n=4"], {"mine": {"n": 4}}),
    ],
)
def test_flags_about_sections_count_in_their_order_and_none_empties_a_section_of_sections(flags, evals):
    assert override(config(), [f"--config.{flag}" for flag in flags]).evals.to_dict() == evals


def test_a_leaf_that_is_unset_and_set_keeps_its_type():
    found = config()
    assert override(found, ["--config.schedule.name=None", "--config.schedule.name=3"]).schedule.name == "3"
    assert override(found, ["--config.cost.source.task=walks", "--config.cost.source=None"]).cost.source is None


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.schedule.warmup_step=1", "did you mean config.schedule.warmup_steps?"),
        ("--config.evls.primer.per_group=1", "did you mean config.evals.primer.per_group?"),
        ("--config.data.mixtur.a.weight=1", "there is no config.data.mixtur.a.weight"),
        ("--config.max_tokens.x=1", "config.max_tokens is a value, not a section"),
        ("--config.evals.items.n=3", "the name items is taken"),
        ("--config.", "--config. is no override: write --config.<name>=<value>"),
        ("--config..seed=1", "is no override: write --config.<name>=<value>; names have letters, digits and . _ -"),
        ("--config.a b=1", "is no override"),
        ("--config.evals=3", "config.evals is a section; set its leaves, primer"),
        ("seed=None", "seed=None is no override"),
        ("--config.evals.other=None", "there is no config.evals.other"),
    ],
)
def test_elsewhere_a_leaf_that_does_not_exist_is_refused(flag, says):
    with pytest.raises(UserError) as error:
        override(config(), [flag])
    assert says in str(error.value)
