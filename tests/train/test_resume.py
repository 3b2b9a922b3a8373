"""Runs as processes that die by kill -9 and by SIGTERM, and go on bit for bit as if nothing had been."""

import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from camelid.launch.cli import main
from camelid.train import checkpoints

STEPS = 24


def random_steps(seed) -> list[int]:
    """Three steps, late enough for a checkpoint: of step 4, whose writing the save of step 8 waits for."""
    rng = random.Random(seed)
    return [rng.randrange(9, 12), rng.randrange(14, 17), rng.randrange(19, 22)]


OFTEN = "--config.checkpoint.every_steps=4"
KILLS = {recipe: random_steps(recipe) for recipe in ("pretrain", "sft")}


def finish(process, code: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def send_at(process, step, number, workdir, metrics) -> None:
    """Sends a signal once the run has reported `step`."""
    while not (workdir / "metrics.jsonl").exists() or max(metrics(workdir), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(number)


def state_of(workdir):
    """Everything in a run's last checkpoint, on one device."""
    path = checkpoints.find(workdir)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = ocp.metadata(path).metadata
    return ocp.load(path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored))


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def runs(arguments, start, metrics, pretrained, tmp_path_factory):
    """For each recipe: the directory of an uninterrupted run, that of a killed one, and where the latter went on."""

    def both(recipe):
        root = tmp_path_factory.mktemp(recipe)
        command = {
            name: [*arguments(recipe, root / name, init_from=pretrained if recipe == "sft" else None), OFTEN]
            for name in ("straight", "killed")
        }
        finish(start(command["straight"]))
        resumed_from = []
        for step in KILLS[recipe]:
            process = start(command["killed"])
            send_at(process, step, signal.SIGKILL, root / "killed", metrics)
            finish(process, code=-signal.SIGKILL)
            resumed_from.append(checkpoints.read_manifest(root / "killed")["step"])
        finish(start(command["killed"]))
        return root / "straight", root / "killed", resumed_from

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(KILLS, pool.map(both, KILLS), strict=True))


@pytest.mark.parametrize("recipe", KILLS)
def test_a_run_killed_at_three_random_steps_ends_with_the_same_bits(recipe, runs, metrics):
    straight, killed, resumed_from = runs[recipe]
    assert 0 < resumed_from[0] <= resumed_from[1] <= resumed_from[2] < STEPS
    found, expected = state_of(killed), state_of(straight)
    assert int(found["step"]) == STEPS
    assert found.keys() == {"params", "opt_state", "step", "guard"} | ({"ema"} if recipe == "sft" else set())
    assert_same_bits(found, expected)
    measured = [
        {
            step: {name: value for name, value in line.items() if re.search(r"loss|norm|/lr|epochs|perplexity", name)}
            for step, line in metrics(workdir).items()
        }
        for workdir in (killed, straight)
    ]
    assert list(measured[0]) == list(range(STEPS + 1))
    assert measured[0] == measured[1]


def test_sigterm_saves_and_ends_well_and_the_run_goes_on_with_the_same_bits(runs, arguments, start, metrics, tmp_path):
    command = [*arguments("pretrain", tmp_path), OFTEN]
    process = start(command)
    send_at(process, 6, signal.SIGTERM, tmp_path, metrics)
    output = finish(process)
    stopped = checkpoints.read_manifest(tmp_path)["step"]
    assert 6 <= stopped < STEPS
    assert f"step {stopped}: checkpoints, metrics and samples are in {tmp_path}" in output
    assert max(metrics(tmp_path)) == stopped
    finish(start(command))
    assert_same_bits(state_of(tmp_path), state_of(runs["pretrain"][0]))


def test_a_run_does_not_go_on_with_other_data(pretrained, arguments, tmp_path, capsys):
    shutil.copytree(pretrained, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert main([*arguments("pretrain", tmp_path / "run"), "--config.seed=1"]) == 2
    said = capsys.readouterr().err
    assert "its run had another data_fingerprint; start anew in another workdir" in said and said.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_does_not_go_on_with_another_optimiser(pretrained, arguments, tmp_path, capsys):
    shutil.copytree(pretrained, tmp_path / "run")
    assert main([*arguments("pretrain", tmp_path / "run"), "--config.optim.name=lion"]) == 2
    said = capsys.readouterr().err
    assert "does not fit" in said and "opt_state" in said and said.count("\n") == 1


def test_a_finished_run_stays_as_it_is(pretrained, arguments, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    assert main(arguments("pretrain", tmp_path / "run")) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (pretrained / "metrics.jsonl").read_bytes()
    assert_same_bits(state_of(tmp_path / "run"), state_of(pretrained))
