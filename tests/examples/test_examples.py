"""The examples as a user runs them: each command of their pages, in a copy of the folder, and what it shows.

The commands run with the shorter lengths that `examples/README.md` names for a trial.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import camelid
from camelid.launch.cli import main
from camelid.tests.conftest import SHARED

ROOT = Path(camelid.__file__).parent
EXAMPLES = ROOT / "examples"
TRIAL = "--config.total_steps=4"
CACHE = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": str(SHARED / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}

pytestmark = pytest.mark.usefixtures("one_device", "corpus")  # `corpus`: a whole run, which comes first and is slow


def commands_of(page: Path) -> list[str]:
    """The commands of a page: lines of indented blocks that begin with `camelid`, with the lines that continue them."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^    (camelid .*)$", text, re.MULTILINE)


def run_page(folder: Path, monkeypatch, *more: str) -> None:
    """Runs all commands of the README.md of a folder, in that folder. more: further flags of each `camelid train`."""
    commands = commands_of(folder / "README.md")
    assert commands
    monkeypatch.chdir(folder)
    for command in commands:
        argv = shlex.split(command)[1:]
        assert main([*argv, *(more if argv[0] == "train" else ())]) == 0, command


@pytest.fixture(scope="module")
def cached():
    """Programs are kept in a folder while the examples run: two runs of an example share most of them."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    for name, value in CACHE.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def examples(tmp_path_factory, cached):
    """A copy of examples/ with the start model that its page makes."""
    folder = tmp_path_factory.mktemp("copy") / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        run_page(folder, patch, "--config.total_steps=30")
    return folder


def settings(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def test_the_page_says_how_a_trial_is_made_short():
    assert TRIAL.partition("=")[0] in (EXAMPLES / "README.md").read_text()


def test_own_reward(examples, metrics, monkeypatch):
    run_page(examples / "own_reward", monkeypatch, TRIAL)
    run = examples / "runs/own_reward"
    assert settings(run)["reward"]["sources"]["shorter"]["function"] == "reward.py:shorter"
    steps = metrics(run)
    assert max(steps) == 4
    assert all(0 <= steps[0][f"eval/heldout/scores/{name}"] <= 1 for name in ("overlap", "shorter", "truth"))
    pairs = [json.loads(line) for line in (examples / "runs/pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["margin"] > 0 for pair in pairs)


def test_own_rewards_compare_words_and_lengths(examples, monkeypatch):
    spec = importlib.util.spec_from_file_location("own_reward_of_the_examples", examples / "own_reward/reward.py")
    reward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reward)
    assert reward.overlap({"reference": "Ada has a red hat."}, "A red hat, Ada!") == pytest.approx(8 / 9)
    assert reward.overlap({"reference": "三只狐狸"}, "三只猫") == pytest.approx(4 / 7)
    assert reward.overlap({"reference": "Yes."}, "") == 0.0
    asked = [{"messages": [{"role": "user", "content": prompt}]} for prompt in "aaab"]
    assert reward.shorter(asked, ["xxx", "x", "xx", "x"]) == [0.0, 1.0, 0.5, 0.0]


def test_own_loss(examples, metrics, monkeypatch):
    run_page(examples / "own_loss", monkeypatch, TRIAL)
    own, usual = examples / "runs/own_loss", examples / "runs/usual_loss"
    assert settings(own)["loss"] == "loss.py:make_loss" and settings(usual)["loss"] is None
    last = metrics(own)[4]
    assert 0 < last["train/loss"] < last["train/cross_entropy"] and 0 <= last["train/sure"] <= 1
    assert "train/sure" not in metrics(usual)[4]


def test_own_recipe(examples, metrics, monkeypatch):
    run_page(examples / "own_recipe", monkeypatch, TRIAL)
    student, alone = examples / "runs/own_recipe", examples / "runs/student_alone"
    assert settings(student)["recipe"] == "recipe.py:train"
    assert (settings(student)["distill"]["weight"], settings(alone)["distill"]["weight"]) == (0.5, 0.0)
    last = metrics(student)[4]
    assert last["train/loss"] == pytest.approx(0.5 * last["train/nll"] + 0.5 * last["train/kl"], rel=1e-5)
    monkeypatch.chdir(examples.parent)  # a model needs no recipe to be loaded
    assert camelid.load(student).config.dim == 32


# docs/change-ppo.md


def test_the_changes_of_the_page_on_ppo_train(examples, metrics, monkeypatch):
    """The copy that the page makes is changed by all of its diffs, and trains with the page's config."""
    page = (ROOT / "docs/change-ppo.md").read_text()
    monkeypatch.chdir(examples)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    copying = re.search(r"^    (sed (?:.|\n)*?my_ppo\.py)$", page, re.MULTILINE).group(1)
    subprocess.run(["sh", "-c", copying], check=True)
    code = Path("my_ppo.py").read_text()
    assert "from ." not in code
    diffs = re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(diffs) == 5
    for diff in diffs:
        before, after = (
            "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in (" ", sign)) for sign in "-+"
        )
        assert code.count(before) == 1, diff
        code = code.replace(before, after)
    Path("my_ppo.py").write_text(code)
    config = re.search(r"^```python\n(from camelid\.configs\.ppo.*?)^```$", page, re.MULTILINE | re.DOTALL).group(1)
    Path("my_config.py").write_text(config.replace("    return c", "    c.ppo.dual_clip = 3.0\n    return c"))
    more = ["--config.total_steps=2", "--config.data.batch_size=16", "--config.data.heldout=0"]
    assert main(["train", "--config=my_config.py", "--workdir=runs/changed", *more]) == 0
    last = metrics("runs/changed")[2]
    assert last["policy/first_ratio_error"] < 1e-4 and last["policy/bounded"] == 0.0
    assert last["value/loss"] > 0
    assert sys.modules["camelid.rlhf.ppo"].PPOSettings.__dataclass_fields__.keys().isdisjoint({"dual_clip"})
