"""A PPO run that dies by kill -9 goes on bit for bit, and against the reference that it began with."""

import re

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from camelid.train import checkpoints

STEPS = 9


def state_of(workdir):
    """Everything in a run's last checkpoint, on one device."""
    path = checkpoints.find(workdir)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = ocp.metadata(path).metadata
    return ocp.load(path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored))


def test_a_run_killed_at_three_random_steps_ends_with_the_same_bits(ppo_run, killed_run, metrics):
    workdir, resumed_from = killed_run
    assert 0 < resumed_from[0] <= resumed_from[1] <= resumed_from[2] < STEPS
    found, expected = state_of(workdir), state_of(ppo_run)
    assert int(found["step"]) == STEPS
    carried = {"params", "opt_state", "step", "guard", "ema", "kl_coef", "score_stats", "multiplier"}
    networks = {"policy", "critic", "cost_critic"}
    assert found.keys() == carried
    assert found["params"].keys() == found["opt_state"].keys() == found["ema"].keys() == networks
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
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
    for step in resumed_from:
        assert kl[step] > 0.1 and kl[step + 1] > 0.1
