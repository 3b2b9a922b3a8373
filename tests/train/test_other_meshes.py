"""Runs that resume on other devices than they were saved on (`tests/meshes.py` measures more of them)."""

import shutil

import jax
import numpy as np
import pytest

from camelid.checkpoints.saving import Checkpoints
from camelid.launch.cli import main
from camelid.model.sharding import PARTITION_RULES, make_mesh
from camelid.tests.train.test_resume import assert_same_bits, state_of
from camelid.tests.train.test_state import nano_state
from camelid.train.optimizer import DEFAULTS
from camelid.train.state import state_shardings


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_state_of_every_optimiser_is_saved_and_restored_on_any_mesh_to_the_same_bits(name, tmp_path):
    rng = np.random.default_rng(0)
    meshes = [make_mesh({}, jax.devices()[:1]), make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), make_mesh({"fsdp": 8})]
    _, _, abstract, _ = nano_state(name, meshes[0])

    def drawn(leaf):
        return np.frombuffer(rng.bytes(leaf.size * leaf.dtype.itemsize), leaf.dtype).reshape(leaf.shape)

    first = jax.tree.map(drawn, abstract)  # any bits: NaN and subnormal numbers among them
    state = jax.device_put(first, state_shardings(abstract, meshes[0], PARTITION_RULES))
    with Checkpoints(tmp_path) as saved:
        for step, mesh in enumerate([*meshes[1:], meshes[0]], 1):
            assert saved.save(step, state, {}, force=True)
            where = state_shardings(abstract, mesh, PARTITION_RULES)
            asked = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)
            state = saved.restore(asked)
            assert jax.tree.map(lambda x: x.sharding, state) == where
            assert_same_bits(jax.device_get(state), first)


def test_a_run_of_eight_devices_resumes_on_one_and_ends_as_before_to_rounding(
    tuned, pretrained, arguments, tmp_path, metrics, one_device
):
    """With a moving average, and gradients of a batch in two parts."""
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    shutil.rmtree(run / "checkpoints" / "24")
    assert main(arguments("sft", run, init_from=pretrained)) == 0
    for step, line in metrics(tuned).items():
        if "train/loss" in line:
            exact = step <= 12
            assert metrics(run)[step]["train/loss"] == pytest.approx(line["train/loss"], abs=0 if exact else 1e-4)
            assert metrics(run)[step]["train/tokens"] == line["train/tokens"]
    found, expected = state_of(run), state_of(tuned)
    assert found["step"] == expected["step"] == 24
    assert found["guard"]["accepted"] == expected["guard"]["accepted"] == 24
    for kind in ("params", "ema"):
        for a, b in zip(jax.tree.leaves(found[kind]), jax.tree.leaves(expected[kind]), strict=True):
            assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b)
