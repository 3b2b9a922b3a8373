"""Runs of PPO as processes: what one reaches and tells, and that one which dies by kill -9 goes on bit for bit."""

import json
import random
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import camelid
from camelid.checkpoints import reading
from camelid.launch.cli import main
from camelid.launch.recipes import read_config
from camelid.rlhf import critic, scalar
from camelid.settings.config_files import load_config
from camelid.tests.rlhf.test_recipes import column
from camelid.tests.train.test_resume import assert_same_bits, finish, send_at, state_of
from camelid.train.run import Run, mesh_of

pytestmark = pytest.mark.usefixtures("one_device")
STEPS = 9
KILLED = random.Random("ppo").randrange(4, STEPS)  # after a checkpoint, that of step 2 at least


class Runs(NamedTuple):
    """straight: the directory of a run that nothing disturbs. killed: that of the same one, killed once, and the step
    that it went on from."""

    straight: Future
    killed: Future


@pytest.fixture(scope="module")
def ppo_command(rl_arguments, tuned, reward_run):
    """ppo_command(workdir): the command line of a PPO run with all that a run may carry from step to step."""

    def line(workdir):
        often = "--config.checkpoint.every_steps=2"
        return [*rl_arguments("ppo", workdir, init_from=tuned, reward=reward_run), often]

    return line


@pytest.fixture(scope="module")
def ppo_runs(ppo_command, start, metrics, tmp_path_factory) -> Iterator[Runs]:
    """Both runs under way, on a device each."""
    workdirs = [tmp_path_factory.mktemp(name) for name in ("ppo", "killed")]

    def straight(workdir) -> Path:
        finish(start(ppo_command(workdir), devices=1))
        return workdir

    def killed(workdir) -> tuple[Path, int]:
        process = start(ppo_command(workdir), devices=1)
        send_at(process, KILLED, signal.SIGKILL, workdir, metrics)
        finish(process, code=-signal.SIGKILL)
        resumed_from = reading.read_manifest(workdir)["step"]
        return straight(workdir), resumed_from

    with ThreadPoolExecutor(2) as pool:
        yield Runs(*(pool.submit(run, workdir) for run, workdir in zip((straight, killed), workdirs, strict=True)))


@pytest.fixture(scope="module")
def ppo_run(ppo_runs) -> Path:
    """The directory of a finished run of PPO, from `tuned` against `reward_run` and a function."""
    return ppo_runs.straight.result()


@pytest.fixture(scope="module")
def killed_run(ppo_runs) -> tuple[Path, int]:
    """That of the same run, killed at a random step, and the step that it went on from."""
    return ppo_runs.killed.result()


def test_ppo_learns_what_a_function_and_a_reward_model_reward_and_gives_a_model_that_chats(ppo_run, metrics):
    blue, proxy = (column(metrics, ppo_run, f"objective/scores/{name}") for name in ("blue", "proxy"))
    assert blue[0] < 0.4 and np.mean(blue[-3:]) > 0.7
    assert np.mean(proxy[-3:]) > proxy[0] + 0.7  # deviations of the tuned model's scores
    total = np.array(column(metrics, ppo_run, "objective/scores"))
    np.testing.assert_allclose(total, np.array(blue) + 0.5 * np.array(proxy), atol=1e-5)
    first, last = metrics(ppo_run)[0], metrics(ppo_run)[9]  # evaluations: before the first step, and after the last
    assert abs(first["eval/heldout/kl"]) < 1e-5 and first["eval/heldout/scores/blue"] < 0.4
    assert last["eval/heldout/kl"] > 0.01 and last["eval/heldout/scores"] > 1.0
    ends = [last[f"eval/heldout/scores/blue/{language}"] for language in ("en", "zh")]
    assert min(ends) <= last["eval/heldout/scores/blue"] <= max(ends)
    tables = map(json.loads, (ppo_run / "samples.jsonl").read_text("utf-8").splitlines())
    for rows in [table["rows"] for table in tables if table["name"] == "heldout"]:
        prompts = [row["prompt"] for row in rows]
        assert len(prompts) == len(set(prompts)) == 4  # one of the two answers to each
    model, average = camelid.load(ppo_run, weights="params"), camelid.load(ppo_run)
    assert (model.step, model.template.name) == (9, "chatml")
    questions = [f"Which colour has the {c} {a} number 7?" for c in ("red", "green", "white") for a in ("fox", "鲸鱼")]
    for network in (model, average):
        answers = network.chat_batch(questions, n=4, max_tokens=16, temperature=0.5)
        assert np.mean([answer.startswith("It is") for answer in answers]) > 0.5
        assert np.mean(["blue" in answer for answer in answers]) > 0.5
    leaves = map(jax.tree.leaves, (model.params, average.params))
    assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*leaves, strict=True))


def test_ppo_tells_what_it_does(ppo_run, metrics):
    """At every step, from the first on."""

    def of(name):
        found = column(metrics, ppo_run, name)
        assert len(found) == 9 and np.all(np.isfinite(found)), name
        return found

    assert max(of("policy/first_ratio_error")) < 1e-5
    assert max(of("sampling/logprob_difference_max")) < 1e-3
    assert abs(of("objective/kl_exact")[0]) < 1e-5 and min(of("objective/kl_exact")[1:]) > 0.01
    assert of("ptx/loss")[-1] < of("ptx/loss")[0] - 1.0
    assert np.mean(of("value/explained_variance")[-5:]) > 0.0
    expected = 0.2 + 0.05 * np.cumsum(np.array(of("cost/scores")) - 1.0)
    np.testing.assert_allclose(of("cost/multiplier"), expected, rtol=1e-5)  # none of them at an end
    assert expected.min() > 0 and of("policy/updates") == [4.0] * 9
    steps = np.array(of("objective/kl_coef")) / [0.05, *of("objective/kl_coef")[:-1]] - 1.0
    np.testing.assert_allclose(steps, np.clip(np.array(of("objective/kl")) - 1.0, -0.2, 0.2) * 16 / 100, atol=1e-5)
    for name in ("tokens/eos_rate", "diversity/distinct-1", "cost_value/explained_variance", "train/tokens_per_second"):
        of(name)


def test_a_ppo_run_is_what_other_runs_start_from(ppo_run, arguments, rl_arguments, tmp_path):
    assert main([*arguments("sft", tmp_path / "sft", init_from=ppo_run), "--config.total_steps=1"]) == 0
    again = read_config(load_config(rl_arguments("ppo", tmp_path, init_from=ppo_run)[1].removeprefix("--config=")))
    run = Run(again, tmp_path, mesh_of(again.mesh))
    with jax.set_mesh(run.mesh):
        initial = critic.initial_params(run, critic.critics_of(run, again.critic, with_cost=False))
        abstract = jax.eval_shape(initial.init, jax.random.key(0))
        where = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract)
        params, reference = initial.load(placed), run.reference()
    stored = camelid.load(ppo_run).params
    for found in (params["policy"], reference, scalar.without_head(params["critic"])):
        jax.tree.map(np.testing.assert_array_equal, found, {name: stored[name] for name in found})
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, abstract)


def test_a_run_does_not_go_on_against_another_reward_model(ppo_run, reward_run, ppo_command, tmp_path, capsys):
    shutil.copytree(ppo_run, tmp_path / "run")
    shutil.copytree(reward_run, tmp_path / "other")
    argv = [*ppo_command(tmp_path / "run"), f"--config.reward.sources.proxy.model={tmp_path / 'other'}"]
    assert main(argv) == 0  # a copy is not another one
    proof = reading.find(tmp_path / "other") / "checksums.json"
    proof.write_text(json.dumps(json.loads(proof.read_text())))  # as if it had been trained once more
    capsys.readouterr()
    assert main(argv) == 2
    assert "there is another frozen model (proxy: " in capsys.readouterr().err


def test_a_run_killed_at_a_random_step_ends_with_the_same_bits(ppo_run, killed_run, metrics):
    workdir, resumed_from = killed_run
    assert 0 < resumed_from < STEPS
    found, expected = state_of(workdir), state_of(ppo_run)
    assert int(found["step"]) == STEPS
    carried = {"params", "opt_state", "step", "guard", "ema", "kl_coef", "score_stats", "multiplier"}
    networks = {"policy", "critic", "cost_critic"}
    assert found.keys() == carried
    assert found["params"].keys() == found["opt_state"].keys() == found["ema"].keys() == networks
    assert_same_bits(found, expected)
    # And it has all moved.
    assert found["score_stats"]["count"] == STEPS * 16
    assert found["kl_coef"] != np.float32(0.05) and found["multiplier"] != np.float32(0.2)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found["opt_state"]["cost_critic"]))

    said = [
        {
            step: {name: value for name, value in line.items() if not re.search("second|memory", name)}
            for step, line in metrics(run).items()
        }
        for run in (workdir, ppo_run)
    ]
    assert list(said[0]) == list(range(STEPS + 1))
    assert said[0] == said[1]


def test_the_reference_of_a_resumed_run_is_the_model_that_it_began_with(ppo_run, killed_run, metrics):
    """KL to the trained parameters would begin again at 0."""
    workdir, resumed_from = killed_run
    kl = {step: line["objective/kl_exact"] for step, line in metrics(workdir).items() if step}
    assert abs(kl[1]) < 1e-5
    assert kl[resumed_from] > 0.1 and kl[resumed_from + 1] > 0.1
