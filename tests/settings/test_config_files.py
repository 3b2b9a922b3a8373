"""Config files: arguments, overrides and phases."""

import textwrap

import pytest

from camelid.configs.base import joined
from camelid.errors import UserError
from camelid.settings.config_files import load_config, load_phases, parse_arguments

CONFIG = '''
    import ml_collections
    from ml_collections import config_dict

    from camelid.settings.config_files import parse_arguments


    def get_config(arg=None):
        """A config as users write them."""
        a = parse_arguments(arg, size="nano", seed=0, scale=1.0, fast=False)
        config = ml_collections.ConfigDict({"size": a.size, "seed": a.seed, "scale": a.scale, "fast": a.fast})
        config.init_from = config_dict.placeholder(str)
        config.total_epochs = None
        config.optim = {"lr": 1e-3, "betas": (0.9, 0.95), "decay": [(".*", 0.1)], "warmup_steps": 10}
        return config
'''


BASE = """from ml_collections.config_dict import required_placeholder

from camelid.configs.base import base
def get_config():
    c = base()
    """


@pytest.fixture
def config_file(tmp_path):
    return write(tmp_path, CONFIG)


def write(directory, source):
    path = directory / "experiment.py"
    path.write_text(textwrap.dedent(source))
    return str(path)


def test_arguments_take_the_types_of_their_defaults():
    a = parse_arguments("size=7b,seed=3,scale=2,fast,path=a=b", size="nano", seed=0, scale=1.0, fast=False, path=None)
    assert vars(a) == {"size": "7b", "seed": 3, "scale": 2.0, "fast": True, "path": "a=b"}
    assert isinstance(a.scale, float)
    assert parse_arguments("fast=false", fast=True).fast is False
    named = parse_arguments(r"path=a\,b\+c.jsonl+d\e.txt,seed=4", path="", seed=0)
    assert vars(named) == {"path": r"a,b\+c.jsonl+d\e.txt", "seed": 4}
    assert [part["source"] for part in joined(named.path).values()] == ["a,b+c.jsonl", r"d\e.txt"]
    assert vars(parse_arguments(None, size="nano")) == vars(parse_arguments("", size="nano")) == {"size": "nano"}


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("sise=7b", "unknown argument 'sise'; did you mean size?; there are size, seed, fast"),
        ("seed=x", "argument seed=x: needs int, such as 0"),
        ("seed", "argument seed=True: needs int"),
        ("fast=1", "argument fast=1: needs bool"),
    ],
)
def test_a_wrong_argument_is_an_error(arg, message):
    with pytest.raises(UserError) as error:
        parse_arguments(arg, size="nano", seed=0, fast=False)
    assert message in str(error.value)


def test_a_config_loads_with_arguments_and_overrides(config_file):
    config = load_config(
        f"{config_file}:size=7b,seed=4",
        [
            "--config.optim.lr=1",  # an int for a float
            "--config.optim.betas=(0.8, 0.9)",
            "--config.optim.decay=[('a', 0), ('.*', 0.2)]",
            "--config.total_epochs=2",  # None in the file: any literal
            "--config.init_from=runs/a",
            "--config.fast",
        ],
    )
    assert (config.size, config.seed, config.fast, config.init_from) == ("7b", 4, True, "runs/a")
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.optim.betas == (0.8, 0.9) and config.optim.decay == [("a", 0), (".*", 0.2)]
    assert config.total_epochs == 2 and config.is_locked


def test_none_unsets_a_leaf_and_the_last_mention_of_a_leaf_counts(config_file):
    config = load_config(config_file, ["--config.optim.warmup_steps=None", "--config.seed=None", "--config.seed=5"])
    assert config.optim.warmup_steps is None and config.seed == 5
    config = load_config(config_file, ["--config.seed=5", "--config.seed=None", "--config.init_from=None"])
    assert config.seed is None and config.init_from is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.lrr=1", "there is no config.optim.lrr; did you mean config.optim.lr?"),
        ("--config.optm.lr=None", "there is no config.optm.lr; did you mean config.optim.lr?"),
        ("--config.seed=abc", "--config.seed=abc: config.seed is of type int, such as 0"),
        ("--config.seed=1.5", "--config.seed=1.5: config.seed is of type int, such as 0"),
        ("--config.fast=7", "config.fast is of type bool, such as False"),
        ("--config.optim.decay=3", "decay = 3: give a list, as in '[3]'"),
        ("--config.optim.decay=zh", """decay = zh: give a list, as in '["zh"]'"""),
        ("--config.optim.decay=[zh, 'en']", """decay = [zh, 'en']: give a list, as in '["zh", "en"]'"""),
        ("--config.optim=3", "config.optim is a section; set its leaves, betas, decay, lr, warmup_steps"),
        ("--config.seed.x=3", "config.seed is a value, not a section"),
        ("--config.seed", "Missing value for flag --config.seed"),
        ("--confg.seed=3", "--confg.seed is no override: write --config.<name>=<value>"),
        ("seed=3", "seed=3 is no override: write --config.<name>=<value>"),
    ],
)
def test_a_wrong_override_is_one_clear_line(config_file, override, message):
    with pytest.raises(UserError) as error:
        load_config(config_file, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:", "experiment.py: SyntaxError: "),
        ("def get_config():\n    return {}['lr']", "experiment.py:2: KeyError: 'lr'"),
        ("def get_config():\n\n    raise OSError('no\\ndisk')", "experiment.py:3: OSError: no disk"),
        ("def get_config():\n    return {}", "get_config() must return an ml_collections.ConfigDict, not dict"),
        (f"{BASE}c.total_steps = 6\n    c.total_steps = 6.5\n    return c", "total_steps = 6.5: give a whole number"),
        (f"{BASE}c.optim.lr = '1e-3'\n    return c", "experiment.py:6: lr = 1e-3: give a number"),
        (f"{BASE}c.data.mixture = 'a'\n    return c", "experiment.py:6: mixture = a: give a section"),
        (f"{BASE}c.init_from = required_placeholder(str)\n    return c", "a required placeholder has no value: set it"),
        ("get_config = 1", "experiment.py: has no function get_config(), which returns the config"),
        (
            "from .a import b",
            "experiment.py:1: ImportError: a file that is named by its path has no package: write `im",
        ),
        ("x = 1", "experiment.py: has no function get_config(), which returns the config"),
        ("import no_such_module", "experiment.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_what_goes_wrong_in_a_config_file_is_one_line_with_its_place(tmp_path, source, message):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, source))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_argument_for_a_file_that_takes_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"its get_config\(\) takes no arguments: leave out :size=3$"):
        load_config(f"{write(tmp_path, f'{BASE}return c')}:size=3")


def test_a_wrong_argument_in_the_path_of_a_config_is_one_line(config_file):
    with pytest.raises(UserError, match=r"experiment\.py:\d+: unknown argument 'sise'; did you mean size\?"):
        load_config(f"{config_file}:sise=3")


def test_a_missing_config_file_is_named_with_its_nearest_neighbour(config_file, tmp_path):
    with pytest.raises(UserError, match=r"experimnt\.py: no such config file; did you mean .*experiment\.py\?"):
        load_config(str(tmp_path / "experimnt.py:size=7b"))


def phased(tmp_path, listed: str) -> str:
    source = f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{"seed": 0, "total_steps": None, "optim": {{"lr": 1.0, "name": "adamw"}}, "phases": {listed}}})
"""
    return write(tmp_path, source)


PHASES = '[("read", {"optim.lr": 2, "total_steps": 5}), ("ask", {"total_steps": 7})]'


def test_phases_change_the_config_and_flags_change_all_phases_or_one(tmp_path):
    path = phased(tmp_path, PHASES)
    found = load_phases(path)
    assert [(name, c.optim.lr, c.total_steps) for name, c in found.items()] == [("read", 2.0, 5), ("ask", 1.0, 7)]
    assert all(c.is_locked and "phases" not in c and isinstance(c.optim.lr, float) for c in found.values())
    found = load_phases(path, ["--config.phases.ask.optim.lr=4", "--config.optim.lr=3", "--config.total_steps=None"])
    assert [(c.optim.lr, c.total_steps) for c in found.values()] == [(3.0, None), (4.0, None)]


def test_a_config_without_phases_is_one_without_a_name(tmp_path, config_file):
    assert load_phases(phased(tmp_path, "None"))[""].seed == 0
    assert load_phases(config_file)[""].seed == 0


@pytest.mark.parametrize(
    ("listed", "override", "message"),
    [
        (PHASES, "--config.phases.asks.seed=1", "the config has no phase asks; did you mean ask?"),
        (PHASES, "--config.phases.ask.sead=1", "there is no config.sead; did you mean config.seed?"),
        (PHASES, "--config.phases=[]", "there is no config.phases"),
        (
            '[("a", {"optim.lrr": 2})]',
            "",
            "phase a: there is no config.optim.lrr; did you mean config.optim.lr?",
        ),
        ('[("a", {"seed": "x"})]', "", "experiment.py: phase a: seed = x: give a whole number"),
        ('[("a", {}), ("a", {})]', "", "each with a name of its own"),
        ('[("../a", {}), ("b", {})]', "", "the name '../a' is not made of letters, digits and underscores"),
        ("[(1, {}), (2, {})]", "", "the name 1 is not made of letters"),
        ('["a"]', "", "config.phases is a list of (name, {leaf: value})"),
        ('[("a", {1: 2})]', "", "config.phases is a list of (name, {leaf: value})"),
        ("5", "", "config.phases is a list of (name, {leaf: value})"),
        ('[("a", {"optim": 1})]', "", "phase a: optim = 1: give a section"),
        ('[("a", 3)]', "", "config.phases is a list of (name, {leaf: value})"),
    ],
)
def test_wrong_phases_are_one_clear_line(tmp_path, listed, override, message):
    with pytest.raises(UserError) as error:
        load_phases(phased(tmp_path, listed), [override] if override else [])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_where_one_run_is_wanted_phases_are_refused(tmp_path):
    with pytest.raises(UserError, match="has the phases read, ask; one run is wanted here"):
        load_config(phased(tmp_path, PHASES))
