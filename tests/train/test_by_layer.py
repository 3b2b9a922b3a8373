"""An optimiser that goes by layer: the steps of all at once, in less memory, and with a state that lies on the host."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.model.sharding import make_mesh
from camelid.tests.train.test_optimizer import optimizer_of, run, tree
from camelid.tests.train.test_resume import assert_same_bits, state_of
from camelid.train import adam_8bit
from camelid.train.state import state_of as first_state
from camelid.train.state import state_shardings
from camelid.train.trainable import Trainable
from camelid.train.update import make_update

RULES = (("layers/mlp/up", (None, "fsdp", "tensor")), (r".*", ()))


def memories(tree) -> dict[str, set[str]]:
    """Kinds of memory of arrays and of scalars."""
    leaves = jax.tree.leaves(tree)
    return {
        name: {x.sharding.memory_kind for x in leaves if bool(x.ndim) == arrays}
        for name, arrays in (("arrays", True), ("scalars", False))
    }


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_steps_are_those_of_a_state_on_the_device(name):
    params, gradients = tree(0), [tree(seed, scale) for seed, scale in ((1, 0.1), (2, 0.01), (3, 1.0))]
    further = dict(clip_norm=1.0, lr_multipliers=((r"embed/.*", 0.5), (r".*/up", 2.0), (r".*", 1.0)))
    plain, offloaded = (optimizer_of(params, name, offload=offload, **further) for offload in (False, True))
    for found, expected in zip(run(offloaded, params, gradients), run(plain, params, gradients), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found, expected)


def test_codes_of_a_layer_are_those_of_the_layer_alone():
    rng = np.random.default_rng(0)
    params = {"layers": {"up": rng.normal(size=(3, 16, 600)).astype(np.float32), "norm": np.ones((3, 16), np.float32)}}

    def steps(params):
        optimizer, gradients = optimizer_of(params, "adamw8bit"), params
        state, move = jax.jit(optimizer.init)(params), jax.jit(optimizer.move)
        for _ in range(3):
            params, state, _ = move(gradients, state, params)
        return params, state

    moved, state = steps(params)
    for i in range(3):
        alone, held = steps({"up": params["layers"]["up"][i]})
        np.testing.assert_allclose(moved["layers"]["up"][i], alone["up"], rtol=1e-6, atol=1e-7)
        mine, other = state["on_device"]["layers"][0].mu["layers"]["up"], held["on_device"]["rest"][0].mu["up"]
        np.testing.assert_array_equal(mine.codes[i], other.codes)
        np.testing.assert_allclose(mine.scales[i], other.scales, rtol=1e-6)


@pytest.mark.parametrize("name, copies", [("adamw8bit", 3.0), ("lion", 3.5), ("adamw", 4.5)])
def test_a_step_with_clipping_holds_the_gradients_once(name, copies):
    """Of the size of the stack: gradients, and what XLA's CPU backend copies to update it under a condition, parameters
    and moments. Neither clipped gradients nor the step."""
    params = {"layers": {"mlp": {"up": np.ones((16, 128, 256), np.float32)}}}
    optimizer = optimizer_of(params, name, clip_norm=1.0, offload=name != "adamw8bit")
    state = first_state(params, optimizer, Trainable(), ema=False)
    step = jax.jit(make_update(quadratic, optimizer, optax.constant_schedule(0.01)), donate_argnums=0)
    needed = step.lower(state, {"weight": jnp.float32(1.0)}).compile().memory_analysis().temp_size_in_bytes
    assert needed < copies * params["layers"]["mlp"]["up"].nbytes


def test_a_tree_without_layers_is_moved_whole():
    params, gradients = ({"score": {"kernel": tree(seed)["norm"]["scale"]}} for seed in (0, 1))
    moved, expected = (run(optimizer_of(params, offload=offload), params, [gradients])[0] for offload in (True, False))
    np.testing.assert_allclose(moved["score"]["kernel"], expected["score"]["kernel"], rtol=1e-6)


def quadratic(params, batch):
    loss = sum(((x - 1.0) ** 2).sum() for x in jax.tree.leaves(params))
    return loss * batch["weight"], batch["weight"], {}


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_step_leaves_moments_on_the_host_and_a_skipped_one_leaves_them_as_they_are(name, monkeypatch):
    monkeypatch.setattr(adam_8bit, "SMALLEST", 1)
    mesh = make_mesh(dict(fsdp=2, tensor=2), jax.devices()[:4])
    params = tree(0)
    optimizer = optimizer_of(params, name, offload=True)

    def make():
        return first_state(params, optimizer, Trainable(), ema=False)

    where = state_shardings(jax.eval_shape(make), mesh, RULES)
    up = jax.tree.leaves(where["opt_state"]["on_host"]["layers"][0].mu["layers"]["mlp"]["up"])
    assert up[0].spec == PartitionSpec(*RULES[0][1]) and len(up) == (2 if name == "adamw8bit" else 1)
    update = make_update(quadratic, optimizer, optax.constant_schedule(0.01))
    step = jax.jit(update, donate_argnums=0, out_shardings=(where, None))
    with jax.set_mesh(mesh):
        now = jax.jit(make, out_shardings=where)()
        now, _ = step(now, {"weight": np.float32(1.0)})
        moved = jax.device_get(now)
        now, metrics = step(now, {"weight": np.float32("inf")})
    assert metrics["skipped"] == 1
    assert memories(now["opt_state"]) == {"arrays": {"pinned_host"}, "scalars": {"device"}}
    assert memories(now["params"])["arrays"] == {"device"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(now["opt_state"]), moved["opt_state"])
    assert all(np.any(x) for x in jax.tree.leaves(moved["opt_state"]))


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(arguments, tmp_path, metrics, one_device):
    changes = ["--config.optim.offload=True", "--config.total_steps=10", "--config.checkpoint.every_steps=5"]
    assert main([*arguments("pretrain", tmp_path / "run"), *changes]) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "10")
    assert main([*arguments("pretrain", tmp_path / "again"), *changes]) == 0
    assert_same_bits(state_of(tmp_path / "again"), state_of(tmp_path / "run"))
    losses = [m["train/loss"] for m in metrics(tmp_path / "run").values() if "train/loss" in m]
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("adafactor", {}, "adafactor needs several layers at a time; adamw, adamw8bit, lion can be offloaded"),
        ("adamw", {"restarts": True}, "set optim.offload=False"),
    ],
)
def test_what_cannot_be_offloaded_is_a_users_error(name, changes, message):
    with pytest.raises(UserError, match=message):
        optimizer_of(tree(0), name, offload=True, **changes)
