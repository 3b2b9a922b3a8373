"""A PPO run that dies by kill -9 goes on bit for bit, and against the reference that it began with."""

import random
import re
import signal
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from camelid.train import checkpoints

STEPS = 12
rng = random.Random("ppo")
KILLS = [rng.randrange(4, 6), rng.randrange(7, 9), rng.randrange(10, 12)]


def finish(process, code: int = 0) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output


def kill_at(process, step, workdir, metrics) -> None:
    """Kills a run once it has reported `step`."""
    while not (workdir / "metrics.jsonl").exists() or max(metrics(workdir), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)


def part_of(workdir, *path):
    """The part under `path` of the state in a run's last checkpoint, on one device."""
    stored = ocp.metadata(checkpoints.find(workdir)).metadata
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = ocp.load(
        checkpoints.find(workdir), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
    )
    for name in path:
        state = state[name]
    return state


@pytest.fixture(scope="module")
def killed(ppo_command, start, metrics, tmp_path_factory):
    """The directory of a run that was killed three times and went on, and the steps that it went on from."""
    workdir, resumed_from = tmp_path_factory.mktemp("killed"), []
    for step in KILLS:
        process = start(ppo_command(workdir))
        kill_at(process, step, workdir, metrics)
        finish(process, code=-signal.SIGKILL)
        resumed_from.append(checkpoints.read_manifest(workdir)["step"])
    finish(start(ppo_command(workdir)))
    return workdir, resumed_from


def test_a_run_killed_at_three_random_steps_ends_with_the_same_bits(ppo_run, killed, metrics):
    workdir, resumed_from = killed
    assert 0 < resumed_from[0] <= resumed_from[1] <= resumed_from[2] < STEPS
    found, expected = part_of(workdir), part_of(ppo_run)
    assert int(found["step"]) == STEPS
    carried = {"params", "opt_state", "step", "guard", "ema", "kl_coef", "score_stats", "multiplier"}
    networks = {"policy", "critic", "cost_critic"}
    assert found.keys() == carried
    assert found["params"].keys() == found["opt_state"].keys() == found["ema"].keys() == networks
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # And it has all moved.
    assert found["score_stats"]["count"] == STEPS * 32
    assert found["kl_coef"] != np.float32(0.05) and found["multiplier"] != 1.0
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found["opt_state"]["cost_critic"]))

    said = [
        {
            step: {name: value for name, value in line.items() if not re.search("second|memory", name)}
            for step, line in metrics(run).items()
        }
        for run in (workdir, ppo_run)
    ]
    assert list(said[0]) == list(range(1, STEPS + 1))
    assert said[0] == said[1]


def test_the_reference_of_a_resumed_run_is_the_model_that_it_began_with(ppo_run, killed, metrics):
    """KL to the trained parameters would begin again at 0."""
    workdir, resumed_from = killed
    kl = {step: line["objective/kl_exact"] for step, line in metrics(workdir).items()}
    assert abs(kl[1]) < 1e-5
    for step in resumed_from:
        assert kl[step] > 0.1 and kl[step + 1] > 0.1
