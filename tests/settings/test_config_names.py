"""Which file a name of a config means, and configs as JSON."""

import json
import sys

import pytest

from camelid.errors import UserError
from camelid.settings.config_files import load_config, load_phases
from camelid.settings.config_json import folders_of
from camelid.settings.config_names import find_config, shipped_configs, split_name
from camelid.settings.functions import find
from camelid.train.config_record import phases_to_json, to_json


@pytest.fixture(autouse=True)
def path(monkeypatch, tmp_path):
    """`sys.path` is as before afterwards; the current folder is a new one."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["sft/lora", "sft/lora.py", "configs/sft/lora.py", "./configs/sft/lora"])
def test_a_shipped_config_is_found_by_name_from_any_folder(name):
    found = find_config(f"{name}:rank=8,lr=1e-3")
    assert (found.name, found.argument, found.is_shipped) == ("sft/lora", "rank=8,lr=1e-3", True)
    assert load_config(f"{name}:rank=8").lora.targets == [("layers/(attention|mlp)/.*", 8)]


def test_an_existing_file_goes_before_a_shipped_config_of_its_name(tmp_path):
    own = tmp_path / "configs" / "sft" / "lora.py"
    own.parent.mkdir(parents=True)
    own.write_text("from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'own': 1})\n")
    assert load_config("configs/sft/lora.py").own == 1
    assert load_config("sft/lora").recipe == "sft"


def test_a_config_that_is_not_there_is_named_with_the_nearest_one(tmp_path):
    for name, says in (
        ("sft/lroa", "sft/lroa: no such config file; did you mean sft/lora?"),
        ("configs/ppo/primr.py", "did you mean ppo/primer?"),
        ("", "the name of the config is empty: `camelid configs` lists"),
        (":rank=8", "the name of the config is empty"),
        ("zzz", "zzz: no such config file; `camelid configs` lists the shipped configs"),
        (str(tmp_path), "is a folder, not a config file"),
        ("http://host/a.py", "http://host/a.py: give a path, a gs:// or s3:// address, or the name of a shipped"),
        ("/dev/null", "/dev/null: a config is a Python file, whose name ends in .py, or the config.json of a run"),
    ):
        with pytest.raises(UserError) as error:
            find_config(name)
        assert says in str(error.value)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a folder; its config is .*/config\.json"):
        find_config(str(tmp_path))


def test_parts_of_configs_are_no_configs():
    names = shipped_configs()
    assert "curate/base" not in names and "curate/text" in names and len(names) > 35
    assert all("/" in name and path.is_file() for name, path in names.items())


def test_the_colon_of_a_url_is_no_arguments():
    assert split_name("gs://bucket/config.json") == ("gs://bucket/config.json", None)
    assert split_name("gs://bucket/a.py:x=gs://b,y=1") == ("gs://bucket/a.py", "x=gs://b,y=1")
    assert split_name("a.py:") == ("a.py", "") and split_name("a.py") == ("a.py", None)


def test_the_config_json_of_a_run_gives_its_config_back_with_flags_upon_it(tmp_path):
    config = load_config("ppo/primer", ["--config.optim.lr=3e-4", "--config.evals.primer.every_steps=7"])
    (tmp_path / "config.json").write_text(to_json(config))
    again = load_config(str(tmp_path / "config.json"))
    assert to_json(again) == to_json(config) and again.is_locked
    assert load_config("config.json", ["--config.total_epochs=2"]).total_steps is None


def test_the_config_json_of_a_run_in_phases_gives_its_phases_back(tmp_path):
    flags = ["--config.phases.questions.evals.primer.per_group=4", "--config.phases.documents.total_steps=8"]
    phases = load_phases("adapt/domain:documents=a,questions=b", flags)
    (tmp_path / "config.json").write_text(phases_to_json(phases))
    again = load_phases("config.json")
    assert list(again) == ["documents", "questions"]
    for name, config in phases.items():
        assert json.loads(to_json(again[name])) == json.loads(to_json(config))
    changed = load_phases("config.json", ["--config.phases.questions.optim.lr=1e-5"])
    assert [config.optim.lr for config in changed.values()] == [2e-4, 1e-5]


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        ("{", "config.json", "config.json: is no JSON: "),
        ("[1]", "config.json", "config.json: holds no config: an object with sections and leaves is wanted"),
        ("[" * 100_000, "config.json", "config.json: is no JSON: maximum recursion depth"),
        ('{"a.b": 1}', "config.json", "config.json: holds no config: ConfigDict does not accept dots"),
        ("{}", "config.json:steps=3", "a .json file has no arguments; change leaves by --config.<leaf>"),
        ('{"phases": 3}', "config.json", "config.phases is a list of (name, {leaf: value})"),
    ],
)
def test_a_json_file_that_is_no_config_is_one_clear_line(tmp_path, text, given, says):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        load_phases(given)
    assert says in str(error.value)


def test_the_code_of_a_run_is_found_where_its_config_was_whatever_folder_it_is_resumed_from(tmp_path, monkeypatch):
    project, first, second, away = (tmp_path / name for name in ("project", "runs/first", "runs/second", "away"))
    for folder in (project, first, second, away):
        folder.mkdir(parents=True)
    (project / "own_loss.py").write_text("value = 5\n")
    starts = {
        first: [("--config=project/mine.py:steps=3",), ("--config=runs/first/config.json",)],
        second: [("--config", "runs/first/config.json")],
    }
    for run, commands in starts.items():
        attempts = [{"folder": str(tmp_path), "command": ["camelid", "train", *words]} for words in commands]
        (run / "run.json").write_text(json.dumps({"attempts": attempts}))
        (run / "config.json").write_text('{"loss": "own_loss.py:value"}')
    monkeypatch.chdir(away)
    assert folders_of(second / "config.json") == list(map(str, (second, tmp_path, first, project)))
    load_config(str(second / "config.json"))
    assert find("own_loss.py:value", "config.loss") == 5
    (second / "run.json").write_text('{"attempts": [{')
    assert folders_of(second / "config.json") == [str(second)]
