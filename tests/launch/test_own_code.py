"""Recipes, losses and evaluations of the user's own: a run with all three, and what is said of wrong ones."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

import camelid
from camelid.checkpoints import manifest
from camelid.errors import UserError
from camelid.evals.registry import Evaluations
from camelid.launch.cli import main
from camelid.launch.recipes import RECIPES, recipe_of
from camelid.rlhf.dpo import AnswerScores, DPOSettings, call_loss
from camelid.rlhf.losses import dpo_loss
from camelid.settings.sections import read
from camelid.train.evaluations import chosen
from camelid.train.losses import checked, loss_of

RECIPE = '''
from dataclasses import dataclass

import jax.numpy as jnp

from camelid.evals.items import Item
from camelid.model.logprobs import token_logprobs
from camelid.settings.leaves import Count, Positive
from camelid.train import sft
from camelid.train.run import Result, Run
from camelid.train.run_config import SupervisedConfig


@dataclass(frozen=True)
class OwnConfig(SupervisedConfig):
    recipe: str = "own_code.py:train"
    """Its name."""

    power: Positive = 2.0
    """Exponent of the focal loss."""


def train(run: Run[OwnConfig]) -> Result:
    return sft.train(run)


def make_loss(model, config):
    def loss_fn(params, rows):
        logp_BT = token_logprobs(model, params, rows).logp
        mask_BT = rows["loss_mask"]
        focal_BT = -((1.0 - jnp.exp(logp_BT)) ** config.power) * logp_BT
        return jnp.sum(focal_BT * mask_BT), jnp.sum(mask_BT), {"nll": -jnp.sum(logp_BT * mask_BT)}

    return loss_fn


def brevity(model, *, n: Count = 1):
    """Measures how long answers are."""
    answers = model.chat_batch(["Hello!"] * n, max_tokens=2, temperature=0.0)
    return [Item(str(number), {"characters": float(len(answer))}) for number, answer in enumerate(answers)]


def untyped(run): ...


def plain(run: Run): ...


def strange(run: "Rnu[OwnConfig]"): ...


def forgetful(run: Run[OwnConfig]): ...


class Undecorated(SupervisedConfig):
    power: Positive = 2.0


def undecorated(run: Run[Undecorated]): ...


@dataclass(frozen=True)
class Misspelt(SupervisedConfig):
    power: "Positve" = 2.0


def misspelt(run: Run[Misspelt]): ...


def misspelt_evaluation(model, *, n: "Cuont" = 1): ...


def nothing(model, config): ...


def fails(model, config):
    raise KeyError("gamma")
'''
CONFIG = """
from camelid.settings.config_files import parse_arguments
from camelid.settings.sections import to_config
from own_code import OwnConfig


def get_config(arg=None):
    a = parse_arguments(arg, root="")
    c = to_config(OwnConfig())
    c.loss = "own_code.py:make_loss"
    c.model.preset = "nano-test"
    c.tokenizer = f"{a.root}/tokenizer"
    c.template = "chatml"
    c.data.mixture = {"chat": {"source": f"{a.root}/chat.jsonl", "format": "alpaca", "weight": 1.0}}
    c.data.cache_dir = f"{a.root}/cache"
    c.data.seq_len = 64
    c.data.batch_size = 8
    c.total_steps = 3
    c.log_steps = 1
    c.eval_percent = 100.0
    return c
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with own_code.py and config.py; the current folder is another one."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "project"
    (tmp_path / "away").mkdir()
    folder.mkdir()
    monkeypatch.chdir(tmp_path / "away")
    (folder / "own_code.py").write_text(RECIPE)
    (folder / "config.py").write_text(CONFIG)
    yield folder
    sys.modules.pop("own_code", None)


@pytest.mark.usefixtures("one_device")
def test_a_run_of_an_own_recipe_with_an_own_loss_and_evaluation(project, corpus, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--config.power=1.5", "--config.evals.short.use=own_code.py:brevity", "--config.evals.short.n=2"]
    assert main(["train", f"--config={project}/config.py:root={corpus}", f"--workdir={run}", *flags]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    assert len(steps) == 3 and all(0 < line["train/loss"] < line["train/nll"] for line in steps)  # (1 - p)^1.5 < 1
    assert any("eval/short/characters" in line for line in lines)

    capsys.readouterr()
    again = ["train", f"--config={run}/config.json", f"--workdir={run}"]
    assert main([*again, "--config.loss=None"]) == 2
    assert "config.loss was 'own_code.py:make_loss' and is None" in capsys.readouterr().err
    with (project / "own_code.py").open("a") as file:
        file.write("# Another line.\n")
    assert main([*again, "--config.total_steps=4"]) == 0
    before, after = (each["code"] for each in json.loads((run / "run.json").read_text())["attempts"])
    assert before.keys() == after.keys() == {"own_code.py:train", "own_code.py:make_loss", "own_code.py:brevity"}
    assert all(before[name] != after[name] for name in before)
    assert "the code of own_code.py:make_loss is not that of the run so far" in capsys.readouterr().err

    assert main(["data", "show", f"--config={run}/config.json", "--rows=1"]) == 0
    assert "<|im_start|>" in capsys.readouterr().out
    (project / "own_code.py").unlink()
    assert camelid.load(str(run)).step == 4  # which needs none of the run's code


def test_an_own_recipe_that_gives_no_result_is_told(project, corpus, tmp_path, capsys):
    command = ["train", f"--config={project}/config.py:root={corpus}", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, "--config.recipe=own_code.py:forgetful"]) == 2
    assert "config.recipe: 'own_code.py:forgetful' gave None and no Result: let it end" in capsys.readouterr().err


def test_recipes_of_one_s_own_say_their_config(project, monkeypatch):
    monkeypatch.chdir(project)
    own = recipe_of({"recipe": "own_code.py:train"})
    assert own.config.__name__ == "OwnConfig" and own.train.__name__ == "train"
    assert recipe_of({"recipe": "sft"}) is RECIPES["sft"]
    for name, says in (
        ("own_code.py:untyped", r"annotate its argument, as in def untyped\(run: Run\[MyConfig\]\)"),
        ("own_code.py:plain", "does not say which config it has"),
        ("own_code.py:strange", "its annotations cannot be read: NameError: name 'Rnu'"),
        ("own_code.py:undecorated", r"write @dataclass\(frozen=True\) above class Undecorated"),
        ("own_code.py:trian", "did you mean train?"),
        ("own_code.py:OwnConfig.train", "none of pretrain, .*, or a function package.module:name or file.py:name"),
        ("stf", "did you mean sft?"),
        (None, "None is none of"),
    ):
        with pytest.raises(UserError, match=rf"^config\.recipe: .*{says}"):
            recipe_of({"recipe": name})


def test_annotations_of_one_s_own_that_cannot_be_read_are_one_line(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match=r"^Misspelt: its annotations cannot be read: NameError: name 'Positve'"):
        read({}, recipe_of({"recipe": "own_code.py:misspelt"}).config)
    with pytest.raises(UserError, match=r"^misspelt_evaluation: its annotations cannot be read: .* 'Cuont'"):
        chosen({"a": {"use": "own_code.py:misspelt_evaluation"}}, Evaluations())


def test_what_an_own_loss_returns_or_raises_is_one_clear_line(project, monkeypatch):
    monkeypatch.chdir(project)
    for name, says in (
        ("nothing", "config.loss = 'own_code.py:nothing': it returned None: return a function loss_fn"),
        ("fails", r"config.loss = 'own_code.py:fails': KeyError: 'gamma' \(.*own_code\.py, line \d+\)"),
        ("train", r"'own_code.py:train' cannot be called as make_loss\(model, config\)"),
    ):
        with pytest.raises(UserError, match=says):
            loss_of(None, types.SimpleNamespace(loss=f"own_code.py:{name}"))
    one = jnp.float32(1)
    assert checked((one, one, {"a": one}), "here") == (one, one, {"a": one})
    for found, says in (
        (one, r"here: the loss returned an array of shape \[\]: return the sum"),
        ((one, one), "here: the loss returned 2 results"),
        ((jnp.ones(3), one, {}), r"here: the loss has the shape \[3\]: return a scalar"),
        ((one, one, {"a": jnp.ones((2, 3))}), r"here: a has the shape \[2, 3\]"),
        (None, "here: the loss returned NoneType"),
    ):
        with pytest.raises(UserError, match=says):
            checked(found, "here")


def test_a_preference_loss_of_one_s_own_gets_the_scores_of_both_models():
    rng = np.random.default_rng(0)
    policy, reference = (AnswerScores(jnp.asarray(rng.normal(size=(4, 2))), jnp.ones((4, 2))) for _ in range(2))
    settings = DPOSettings(kind="math:hypot", beta=0.3)  # a name only: the function is given

    def sigmoid(policy, reference, settings):
        gap_B2 = settings.beta * (policy.logp - reference.logp)
        return jnp.mean(jnp.logaddexp(0.0, gap_B2[:, 1] - gap_B2[:, 0])), {"rewards/margin": jnp.float32(7)}

    loss, stats = call_loss(sigmoid, policy, reference, settings)
    expected, known = dpo_loss(
        *(x for scores in (policy, reference) for x in scores.logp.T), beta=0.3, kind="sigmoid", label_smoothing=0.0
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert stats["rewards/margin"] == 7 and stats["rewards/accuracy"] == known["rewards/accuracy"]
    with pytest.raises(UserError, match=r"config\.dpo\.kind = 'math:hypot': the loss has the shape \[4\]"):
        call_loss(lambda policy, reference, settings: (policy.logp[:, 0], {}), policy, reference, settings)
    with pytest.raises(UserError, match="return the mean loss over pairs, a scalar, and a dict of statistics"):
        call_loss(lambda policy, reference, settings: policy.logp[0, 0], policy, reference, settings)
    with pytest.raises(UserError, match=r"KeyError: 'x' \(.*test_own_code\.py"):
        call_loss(lambda policy, reference, settings: {}["x"], policy, reference, settings)


def test_an_option_of_a_built_in_preference_loss_is_refused_with_one_s_own(project, monkeypatch):
    from camelid.settings.sections import read

    monkeypatch.chdir(project)
    (project / "own_preference.py").write_text("def loss(policy, reference, settings):\n    return 0.0, {}\n")
    assert read({"kind": "own_preference.py:loss"}, DPOSettings).has_reference
    for section, says in (
        ({"kind": "own_preference.py:loss", "gamma": 0.7}, "it is for simpo"),
        ({"kind": "own_preference.py:los"}, "did you mean loss?"),
        ({"kind": "sigmod"}, r"'sigmod' is none of .*, or a function .*; did you mean sigmoid\?"),
    ):
        with pytest.raises(UserError, match=says):
            read(section, DPOSettings)
    assert manifest.code_of({"dpo": {"kind": "own_preference.py:loss"}}).keys() == {"own_preference.py:loss"}
