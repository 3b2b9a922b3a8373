"""What is known of a run before anything is read or built: every leaf of every shipped config, mutated."""

import errno
import importlib.util
import itertools
import math
import os
import random
import tempfile
import typing
from pathlib import Path

import ml_collections
import pytest
from etils import epath

from camelid.errors import UserError
from camelid.evals.registry import Evaluations
from camelid.launch import checks
from camelid.launch.checks import check_config, check_phases
from camelid.launch.cli import main
from camelid.launch.outputs import check_new_file, check_writable, output_folder
from camelid.launch.recipes import RECIPES
from camelid.settings.config_files import load_phases
from camelid.settings.leaves import Function, Integral, Name, OneOf, Range, Regex, Text, fields_of, is_section
from camelid.settings.leaves import Path as NotEmpty
from camelid.settings.sections import leaves_of

EVALUATORS = Evaluations()
ROOT = Path(checks.__file__).parents[1]
GIVEN = {  # arguments without which a config says that they are missing
    "adapt/faq.py": "init_from=x,questions=walks:chat",
    "adapt/domain.py": "init_from=x,documents=a,questions=b",
    "adapt/vocabulary.py": "init_from=x,source=a",
    "sft/lora.py": "init_from=x,source=a",
    "sft/lisa.py": "init_from=x,source=a",
}
SHIPPED = sorted(  # `configs/curate/` describes datasets, not runs
    str(path.relative_to(ROOT / "configs"))
    for path in (ROOT / "configs").glob("*/*.py")
    if path.stem != "__init__" and path.parent.name != "curate"
)


def shipped(name: str, overrides=()) -> dict[str, ml_collections.ConfigDict]:
    """The phases of a shipped config."""
    arguments = f":{GIVEN[name]}" if name in GIVEN else ""
    return load_phases(f"{ROOT / 'configs' / name}{arguments}", overrides)


@pytest.fixture(scope="module")
def configs():
    """Every phase of every shipped config: {(file, phase): config}."""
    return {(name, phase): config for name in SHIPPED for phase, config in shipped(name).items()}


def leaves(config):
    found = list(leaves_of(config, RECIPES[config.recipe].config))
    for name, section in config.evals.items():
        found += leaves_of(section, EVALUATORS[name], f"config.evals.{name}")
    return [(leaf, annotation) for leaf, annotation in found if leaf not in ("config.recipe", "config.evals")]


def parts(annotation, markers=()):
    """The simple types within an annotation, each with the markers that hold for it."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        yield from parts(inner, (*markers, *more))
    elif typing.get_args(annotation):
        for each in typing.get_args(annotation):
            yield from parts(each, markers)
    elif is_section(annotation):
        for each in fields_of(annotation).values():
            yield from parts(each)
    else:
        yield annotation, markers


def test_every_shipped_config_holds(configs):
    assert len(configs) > 30
    for config in configs.values():
        check_config(config, EVALUATORS)


def test_every_number_has_a_range_and_every_name_its_choices(configs):
    seen = set()
    for config in configs.values():
        for leaf, annotation in leaves(config):
            seen.add(leaf)
            # XLA's compiler checks the values of its options itself (model/compiler_options.py).
            for kind, markers in parts(annotation) if leaf != "config.compiler_options" else ():
                if kind in (int, float):
                    assert any(isinstance(marker, Range | Integral) for marker in markers), leaf
                if kind is str and leaf != "config.lora.quantize":  # kinds of a list of rules: model/storage.py
                    assert any(isinstance(marker, OneOf) for marker in markers), leaf
                strings = (str, NotEmpty, Name, Text, Regex, Function)
                assert kind in (int, float, bool, type(None), typing.Any, *strings), (leaf, kind)
    assert {"config.optim.clip_norm", "config.checkpoint.keep_last", "config.ppo.clip", "config.seed"} <= seen


MUTATIONS = (
    True, -1, 0, 2**31, 10**30, -0.5, 1e300, -1e300, 1e-60, math.nan, math.inf, None, "", "abc", " ", "(", "a:b",
    "0",    [], (), [1], [("(", 1)], [(".*", math.nan)], [[]], {}, {"a": 1}, {"model": 3}, {"function": "os:x"},
    {"x": {"source": 3}},
)  # fmt: skip


def said(config, evaluators=None) -> str:
    """What is said of a config: one line; "" where it holds."""
    try:
        check_config(config, evaluators or EVALUATORS)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1200
        return str(error)
    return ""


def changed(config, leaf, value):
    """The config with another value, of any type, as a config file may set it."""
    section = plain = config.to_dict()
    *sections, last = leaf.split(".")[1:]
    for name in sections:
        section = section[name]
    section[last] = value
    return ml_collections.ConfigDict(plain)


def test_no_value_of_any_leaf_is_a_traceback_and_what_is_no_number_is_never_one(configs):
    rng = random.Random(0)
    counts = {"refused": 0, "accepted": 0}
    cases = [(key, leaf, annotation) for key, config in configs.items() for leaf, annotation in leaves(config)]
    for (key, leaf, annotation), value in zip(rng.sample(cases, 800), itertools.cycle(MUTATIONS), strict=False):
        problem = said(changed(configs[key], leaf, value))
        counts["refused" if problem else "accepted"] += 1
        kinds = {kind for kind, _ in parts(annotation)}
        number = (
            kinds & {int, float} and kinds <= {int, float, type(None)} and leaf != "config.lisa.layers"
        )  # or a list
        never = value is not None and (not isinstance(value, int | float) or isinstance(value, bool))
        if number and (never or (value is not None and not -1e38 < value < 1e38)):
            assert problem.startswith(leaf) and ": give a " in problem, (leaf, value, problem)
    assert counts["refused"] > 500 and counts["accepted"] > 20, counts


def test_overrides_of_any_kind_are_one_line_or_accepted(configs):
    rng = random.Random(1)
    texts = [
        "",
        "abc",
        "-1",
        "0",
        "1e400",
        "nan",
        "None",
        "True",
        "[1]",
        "[('(',1)]",
        "{'a':1}",
        "1.5",
        "99999999999999",
    ]
    names = [name for name in SHIPPED if name not in GIVEN]
    for number in range(60):
        name = rng.choice(names)
        leaf, _ = rng.choice(leaves(configs[name, ""]))
        try:
            check_phases(shipped(name, [f"--{leaf}={texts[number % len(texts)]}"]), EVALUATORS)
        except UserError as error:
            assert "\n" not in str(error)


PPO = "ppo/primer.py"
TENS = "camelid.tests.tiny_rl:tens"
UNREAD = {
    "config.optim.momentum": (PPO, 0.9, "config.optim.name is 'adamw': it is for muon"),
    "config.optim.decay_rate": (PPO, 0.9, "config.optim.name is 'adamw': it is for adafactor"),
    "config.schedule.decay_percent": (PPO, 20, "only wsd uses it"),
    "config.schedule.final": ("adapt/vocabulary.py", 2.0, "give a number from 0 to 1"),
    "config.kl.target": (PPO, 3.0, "config.kl.controller is 'fixed'"),
    "config.cost.threshold": (PPO, 1.0, "set config.cost.source too"),
    "config.lora.alpha": (PPO, 3.0, "set config.lora.targets too"),
    "config.guard.warmup_steps": (PPO, 3, "set config.guard.spike_sigma too"),
    "config.watch.patience_evaluations": ("ppo/trl.py", 2, "set config.watch.proxy too"),
    "config.dpo.gamma": ("dpo/primer.py", 0.7, "config.dpo.kind is 'sigmoid': it is for simpo"),
    "config.dpo.desirable_weight": ("dpo/primer.py", 2.0, "it is for kto"),
    "config.objective.margin": ("reward/safe_sums_cost.py", 1.0, "config.objective.kind is 'cost'"),
    "config.pessimism": ("reward/primer.py", 0.5, "config.heads is 1"),
    "config.objective.bootstrap": ("reward/primer.py", True, "config.heads is 1"),
}


@pytest.mark.parametrize("leaf", UNREAD)
def test_an_option_that_the_chosen_kind_does_not_read_is_refused(leaf, configs):
    name, value, message = UNREAD[leaf]
    key = (name, "") if (name, "") in configs else next(key for key in configs if key[0] == name)
    assert message in said(changed(configs[key], leaf, value))


def test_a_kind_s_own_options_are_read(configs):
    dpo = changed(changed(configs["dpo/primer.py", ""], "config.dpo.kind", "simpo"), "config.dpo.gamma", 0.7)
    ppo = changed(changed(configs[PPO, ""], "config.optim.name", "muon"), "config.optim.momentum", 0.9)
    wsd = changed(changed(configs[PPO, ""], "config.schedule.name", "wsd"), "config.schedule.decay_percent", 20)
    assert [said(dpo), said(ppo), said(wsd)] == [""] * 3


TOGETHER = {
    "a metric alone": ("config.watch.gold", None, "config.watch.proxy = 'eval/heldout/scores' needs config.watch.gold"),
    "no such metric": ("config.watch.gold", "eval/heldout/score", "did you mean eval/heldout/scores?"),
    "no such evaluation": ("config.watch.proxy", "eval/gld/all", "no evaluation gives such a metric"),
    "nothing held out": ("config.data.heldout", 0.0, "no evaluation gives such a metric"),
    "no such function": ("config.eval_rewards.gold", {"function": "camelid.tasks.primer:rewrd"}, "is no function as"),
    "no such task": ("config.eval_rewards.gold.task", "primr", "there is no task 'primr'; choose one of primer,"),
    "no such score": ("config.eval_rewards.gold.task", "safe_sums:costs", "there is no score 'safe_sums:costs'"),
    "a task and a function": ("config.eval_rewards.gold.function", TENS, "give one of model=PATH, task=NAME"),
    "no such evaluator": ("config.evals", {"golden": {}}, "there is no evaluation 'golden', only choices, "),
    "too many answers for the controller": ("config.kl", {"coef": 0.1, "estimator": "k1", "controller": "adaptive",
        "target": 6.0, "horizon": 51}, "give more than 51.2"),
    "a mesh for other devices": ("config.mesh.data", 3, "does not fit 8 device(s)"),
    "an option that XLA does not have": ("config.compiler_options", {"xla_x": 1}, "No such compile option: 'xla_x'"),
    "no Weights & Biases": ("config.wandb.project", "mine",
        "config.wandb.project = 'mine' asks for Weights & Biases"),
    "no such template": ("config.template", "chatlm", "no chat template 'chatlm'"),
    "a kernel for other devices": ("config.model.attention", "splash", "a kernel for TPUs, and the devices here"),
    "rewards that weigh nothing": ("config.reward.sources", {"a": {"function": TENS, "weight": 0}},
        "with a weight other than 0"),
    "a watched metric twice": ("config.watch.gold", "eval/heldout/scores", "is the proxy too"),
    "a multiplier above its limit": ("config.cost", {"source": {"function": TENS}, "threshold": 0.0,
        "multiplier_init": 2.0, "lr": 0.1, "multiplier_max": 1.0},
        "config.cost.multiplier_init = 2.0: give at most config.cost.multiplier_max, which is 1.0"),
    "float16": ("config.model.dtype", "float16", "config.model.dtype: 'float16' is none of float32, bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOGETHER)
def test_what_cannot_be_is_said_at_once(name, configs, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    leaf, value, message = TOGETHER[name]
    assert message in said(changed(configs[PPO, ""], leaf, value))


def test_what_a_machine_lacks_does_not_matter_where_a_config_only_says_what_data_it_needs(configs):
    config = changed(configs[PPO, ""], "config.mesh.data", 3)
    config.model.attention = "splash"
    check_config(config, EVALUATORS, here=False)


def test_answers_that_leave_no_room_for_a_prompt_are_said_at_once(configs):
    reward = configs["reward/primer.py", ""]
    said_of = said(changed(reward, "config.calibrate.max_tokens", reward.data.seq_len))
    assert "prompt and answer share a row of 64 tokens (config.data.seq_len); give less" in said_of


def test_a_metric_of_a_further_evaluation_may_be_watched(configs):
    assert said(changed(configs[PPO, ""], "config.watch.gold", "eval/primer/all")) == ""


def test_all_phases_are_checked_before_the_first_starts(tmp_path, capsys):
    config = f"--config={ROOT / 'configs/adapt/domain.py'}:{GIVEN['adapt/domain.py']}"
    assert main(["train", config, f"--workdir={tmp_path / 'run'}", "--config.phases.questions.optim.clip_norm=0"]) == 2
    assert capsys.readouterr().err == (
        "camelid: phase questions: config.optim.clip_norm = 0.0: give a number greater than 0, or None for no "
        "clipping\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_config_file_of_one_s_own_is_checked_alike(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text(
        "from camelid.configs.base import base\n\n\ndef get_config():\n    c = base()\n"
        "    c.model.preset = 'nano-test'\n    c.total_steps = 3\n    c.checkpoint.keep_last = 0\n"
        "    c.data.mixture = {'a': {'source': 'a', 'weight': 1.0}}\n    return c\n"
    )
    assert main(["train", f"--config={own}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "config.checkpoint.keep_last = 0: give a whole number from 1 up" in capsys.readouterr().err


def no_entry(dir):
    """What folders of /proc say whose permissions allow to write."""
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_built(tmp_path, monkeypatch):
    check_writable(epath.Path(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_writable(epath.Path(tmp_path / "file" / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"caf\\udce9/run: the name is not UTF-8"):
        check_writable(epath.Path(tmp_path / os.fsdecode(b"caf\xe9") / "run"))
    with pytest.raises(UserError, match="link is a broken link"):
        check_writable(tmp_path / "link" / "run")
    with pytest.raises(UserError, match=r"--output=.* is a folder: give the name of a file"):
        check_new_file(tmp_path)
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"--workdir=.*/a/b: no file can be made in .*: No"),
    ):
        patch.setattr(tempfile, "TemporaryFile", no_entry)
        check_writable(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(PermissionError, match="no permission to write in"):
        check_writable(epath.Path(tmp_path / "a" / "b"))


def test_an_address_is_a_folder_to_write_in_where_a_package_opens_it(monkeypatch):
    with pytest.raises(UserError, match="--workdir=https://x/y: https:// cannot be written"):
        output_folder("https://x/y")
    with pytest.raises(UserError, match="--workdir=: the name is empty"):
        output_folder("")
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda kind: object)
    assert os.fspath(output_folder("gs://bucket/run")) == "gs://bucket/run"

    def missing(kind):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--workdir=gs://bucket/run: Please install gcsfs"):
        output_folder("gs://bucket/run")
