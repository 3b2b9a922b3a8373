"""Spaces: how they are written and read, their points, and the flags that make a point's config."""

import math

import pytest

from camelid.errors import UserError
from camelid.launch.sweeps.space import Choice, Range, config_of, read_space
from camelid.settings.config_files import parse_arguments


def test_every_form_is_read_and_written_back():
    text = """optim.lr=log(1e-4,1e-2) config.lora.dropout=uniform(0, 0.2, 0.05)   share=(0,1)
        model.n_layers=int(2,12,2) width=int(8,512,log) optim.kind={adamw, muon}
        betas={[0.9, 0.95],[0.9,0.999]} template={None,'a, b',"{x}",'1',True} :rank={4,8} seed={0,1,2}"""
    space = read_space([text])
    assert space.settings == {
        "optim.lr": Range(1e-4, 1e-2, log=True),
        "lora.dropout": Range(0.0, 0.2, step=0.05),
        "share": Range(0.0, 1.0),
        "model.n_layers": Range(2, 12, step=2, whole=True),
        "width": Range(8, 512, log=True, whole=True),
        "optim.kind": Choice(("adamw", "muon")),
        "betas": Choice(([0.9, 0.95], [0.9, 0.999])),
        "template": Choice((None, "a, b", "{x}", "1", True)),
        ":rank": Choice((4, 8)),
        "seed": Choice((0, 1, 2)),
    }
    assert read_space(space.lines()) == space
    assert read_space([str(space)]) == space
    assert space.seeds == (0, 1, 2) and "seed" not in space.searched


def test_a_file_has_a_setting_a_line_and_comments(tmp_path):
    (tmp_path / "space.txt").write_text(
        "# the optimiser's\noptim.lr={1e-3,  # small\n  1e-2}\n\n  # seeds\nseed={0,1} # it's two\nname={'a # b',c#d}\n"
    )
    same = ["optim.lr={1e-3,1e-2}", "seed={0,1}", "name={'a # b','c#d'}"]
    assert read_space([str(tmp_path / "space.txt")]) == read_space(same)


def test_what_is_no_value_of_a_config_is_a_word(recwarn):
    space = read_space(["a={...,1or2,1e400,1j,b'x'}"])
    assert space.settings["a"] == Choice(("...", "1or2", "1e400", "1j", "b'x'")) and not recwarn
    assert read_space(space.lines()) == space


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "optim.lr": "neither NAME=",
        "a=1": "in quotes, 'a={a,b}', or the shell expands the braces",
        "a={1,2": "lacks a closing }",
        "a={1,2}}": "} closes nothing",
        "a={1,2},seed={0,1}": "settings are separated by spaces",
        "a=lag(1,2)": "did you mean log?",
        "a=log(0,1)": "ends above 0",
        "a=log(1,2,3)": "write log(low,high)",
        "a=uniform(2,1)": "smaller than the second",
        "a=uniform(0,1,0.3)": "steps of 0.3 do not lead from 0.0 to 1.0",
        "a=int(1,2.5)": "whole numbers",
        "a=int(x,2)": "write int(low,high)",
        "a=uniform(0,inf)": "write uniform(low,high)",
        "a={1,,2}": "a value is empty",
        "a={x,x}": "x is there twice",
        "a={1,1.0}": "two of the values are equal",
        "a={True,1}": "two of the values are equal",
        "a={1,2} config.a={3,4}": "a is described twice",
        "a b={1,2}": "'a' is no setting",
        "seed={-1,0}": "seeds are whole numbers",
        "=": "is no setting",
    }.items(),
)
def test_what_cannot_be_read_is_told_in_a_line(text, said):
    with pytest.raises(UserError) as error:
        read_space([text])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_grid_is_gone_through_with_its_last_setting_fastest():
    space = read_space(["a={1,2} seed={5,6} b={x,y,z}"])
    points = [space.grid_point(number) for number in range(space.grid_size)]
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]


def test_probes_are_ends_choices_and_a_number_that_is_not_whole():
    probes = list(read_space(["a=log(1,100) b={x,y,z} c=int(1,9)"]).probes())
    assert probes[0] == {"a": 1.0, "b": "x", "c": 1}
    assert {point["b"] for point in probes} == {"x", "y", "z"} and {point["c"] for point in probes} == {1, 9}
    assert any(not point["a"].is_integer() and 1 < point["a"] < 100 for point in probes)


def test_a_point_becomes_flags_and_arguments_of_the_config_file():
    point = {
        "optim.lr": 0.1 + 0.2,
        ":name": "a,b",
        "template": None,
        "betas": [0.9, 0.95],
        "kind": "muon",
        ":deep": True,
    }
    path, flags = config_of("c.py:size=1", point)
    assert flags == [
        "--config.optim.lr=0.30000000000000004",
        "--config.template=None",
        "--config.betas=[0.9, 0.95]",
        "--config.kind=muon",
    ]
    arguments = parse_arguments(path.partition(":")[2], size=0, name="", deep=False)
    assert (arguments.size, arguments.name, arguments.deep) == (1, "a,b", True)
    assert config_of("sft/lora", {":rank": 4}) == ("sft/lora:rank=4", [])
    assert config_of("c.py", {"lr": 1.0}) == ("c.py", ["--config.lr=1.0"])


def test_optuna_stores_every_value_and_gives_it_back():
    space = read_space(["betas={[0.9,0.95],[0.9,0.999]} kind={adamw,None,2,True} lr=log(1e-4,1e-2) n=int(2,12,2)"])
    for values in space.settings.values():
        distribution = values.distribution()
        for value in values.probes():
            stored = values.stored(value)
            assert distribution._contains(distribution.to_internal_repr(stored))
            assert values.restored(stored) == value and type(values.restored(stored)) is type(value)
    assert math.isclose(space.settings["lr"].distribution().low, 1e-4)
