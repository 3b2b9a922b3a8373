"""Layers that take turns, and layers that are named: against whole gradients, AdamW in numpy, and resumed runs."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval
from jax.sharding import NamedSharding, PartitionSpec

from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.recipes import read_config
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.logprobs import next_token_loss
from camelid.model.sharding import BATCH, PARTITION_RULES, make_mesh
from camelid.settings.config_files import load_config
from camelid.tests.model.test_llama import equations
from camelid.tests.train.test_optimizer import flat, tree
from camelid.tests.train.test_resume import OFTEN, assert_same_bits
from camelid.tests.train.test_resume import state_of as stored_state
from camelid.train import adam_8bit
from camelid.train.optimizer import DEFAULTS, OptimSettings, make_optimizer
from camelid.train.state import state_of, state_shardings
from camelid.train.trainable import Trainable, of_layers
from camelid.train.update import make_update

ALL = ((r".*", False),)
NORMS_ALONE = ((r".*norm/scale", False), (r".*", True))
CONFIG = LlamaConfig.preset(
    "nano-test",
    vocab_size=48,
    dim=16,
    n_layers=5,
    n_heads=4,
    head_dim=4,
    ffn_dim=32,
    tied=False,
    remat="full",
    unroll=1,
)
MODEL = llama.build(CONFIG)
LOSS = next_token_loss(MODEL)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
STACKS = {leaf.shape for leaf in jax.tree.leaves(PARAMS["layers"])}
TURNS = Trainable(layers=2, period=2)


def batch_of(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab_size, (8, 7)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, 1, axis=1),
        "loss_mask": (rng.random(tokens.shape) < 0.7).astype(np.float32),
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(7, dtype=np.int32), (8, 1)),
    }


@jax.jit
def whole_gradient(params, batch):
    def mean(params):
        loss, tokens, _ = LOSS(params, batch)
        return loss / tokens

    return jax.grad(mean)(params)


def gradient_by(trainable, step=0, **changes):
    """The function of what learns that gives its gradient on batch 0, and what learns."""
    loss = next_token_loss(llama.build(dataclasses.replace(CONFIG, **changes)))
    learns, rest = trainable.split(PARAMS, step)

    def mean(learns):
        total, tokens, _ = loss(trainable.for_loss(learns, rest), batch_of(0))
        return total / tokens

    return jax.grad(mean), learns


@pytest.mark.parametrize(
    ("trainable", "changes"),
    [
        (TURNS, dict(remat="none", unroll=2)),
        (Trainable(NORMS_ALONE, (2, 4)), dict(remat="dots")),  # nothing learns below layer 2
    ],
)
def test_gradients_are_those_of_the_whole_network_at_the_layers_that_learn(trainable, changes):
    gradient, learning = gradient_by(trainable, **changes)
    found = jax.jit(gradient)(learning)
    expected = flat(trainable.split(whole_gradient(PARAMS, batch_of(0)), 0)[0])
    assert flat(found).keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(flat(found)[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.abs(value).max() > 1e-4


def test_no_gradient_has_the_size_of_the_stack_and_fixed_layers_have_none_for_their_weights():
    program = jax.make_jaxpr(jax.grad(lambda params: LOSS(params, batch_of(0))[0]))(PARAMS)
    assert {v.aval.shape for e in equations(program.jaxpr) for v in e.outvars} >= STACKS
    gradient, learning = gradient_by(TURNS)
    found = list(equations(jax.make_jaxpr(gradient)(learning).jaxpr))
    assert not {v.aval.shape for e in found for v in e.outvars} & STACKS
    [choice] = [e for e in found if e.primitive.name == "cond" and len(e.outvars) > 1]
    products = []
    for branch in choice.params["branches"]:  # what the compiler leaves of each: what its results depend on
        needed, _ = partial_eval.dce_jaxpr(branch.jaxpr, [True] * len(branch.out_avals))
        products.append(sum(e.primitive.name == "dot_general" for e in equations(needed)))
    fixed, learns = products
    assert learns - fixed == 7  # one for each matrix of a layer


# Steps

LR, CLIP, DECAY, EMA = 1e-2, 0.5, 0.1, 0.8
SKIPPED = 4  # the first step of a period
STEPS = 7


def optimizer_of(name="adamw", params=PARAMS, **changes):
    restarts = changes.pop("restarts", True)
    settings = OptimSettings(name=name, **(dict(weight_decay=DECAY, clip_norm=CLIP) | changes))
    return make_optimizer(params, settings, optax.constant_schedule(LR), restarts=restarts)


def poisoned(step):
    batch = batch_of(step)
    if step == SKIPPED:
        batch["loss_mask"][:] = np.inf
    return batch


def steps_on(**axes):
    """States after each of the steps, and losses, on a mesh: two layers of five, other ones for every two steps."""
    mesh = make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    optimizer = optimizer_of()
    first = jax.device_get(state_of(PARAMS, optimizer, TURNS, ema=True))
    where = state_shardings(first, mesh, PARTITION_RULES)
    update = make_update(LOSS, optimizer, optax.constant_schedule(LR), TURNS, accumulate=2, ema_decay=EMA)
    states, losses = [first], []
    with jax.set_mesh(mesh):
        step_fn = jax.jit(update, donate_argnums=0, out_shardings=(where, None))
        state = jax.device_put(first, where)
        for step in range(STEPS):
            rows = NamedSharding(mesh, PartitionSpec(BATCH, "context"))
            state, metrics = step_fn(state, jax.device_put(poisoned(step), rows))
            states.append(jax.device_get(state))
            losses.append(float(metrics["loss"]))
    moments = state["opt_state"][1]["layers"].mu["layers"]["mlp"]["up"]
    assert moments.shape == (2, 16, 32) and tuple(moments.sharding.spec) == (None, "fsdp", "tensor")
    return states, losses


@pytest.fixture(scope="module")
def alone():
    return steps_on(data=1)


def test_steps_equal_adamw_in_numpy_whose_moments_begin_anew_for_the_layers_of_each_period(alone):
    states, losses = alone
    p, period = flat(PARAMS), None
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    average, counts = flat(PARAMS), {"layers": 0, "rest": 0}
    for step in range(STEPS):
        before, after = flat(states[step]["params"]), flat(states[step + 1]["params"])
        if step == SKIPPED:
            assert not np.isfinite(losses[step])
            assert_same_bits(states[step + 1]["params"], states[step]["params"])
            continue
        rows = np.array(TURNS.split(PARAMS, step)[1].rows)
        if step // 2 != period:
            period, counts["layers"] = step // 2, 0
            for moment in (m, v):
                moment.update({name: np.zeros_like(x[rows]) for name, x in p.items() if "layers/" in name})
        whole = flat(whole_gradient(states[step]["params"], batch_of(step)))
        g = {name: x[rows] if "layers/" in name else x for name, x in whole.items()}
        clipped = max(np.sqrt(sum((x**2).sum() for x in g.values())) / CLIP, 1.0)
        counts = {part: count + 1 for part, count in counts.items()}
        for name in p:
            layered = "layers/" in name
            t, here = (counts["layers"], rows) if layered else (counts["rest"], ...)
            m[name] = 0.9 * m[name] + 0.1 * g[name] / clipped
            v[name] = 0.95 * v[name] + 0.05 * (g[name] / clipped) ** 2
            direction = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            p[name] = before[name].copy()
            p[name][here] -= LR * (direction + (0.0 if "norm" in name else DECAY) * before[name][here])
            np.testing.assert_allclose(after[name], p[name], rtol=1e-4, atol=2e-6, err_msg=f"{step} {name}")
            if layered:
                others = np.setdiff1d(np.arange(5), rows)
                np.testing.assert_array_equal(after[name][others], before[name][others])
            average[name] = EMA * average[name] + (1 - EMA) * after[name]
            np.testing.assert_allclose(flat(states[step + 1]["ema"])[name], average[name], rtol=1e-5, atol=1e-6)
    assert counts == {"layers": 1, "rest": STEPS - 1}


def test_losses_are_those_of_one_device_on_a_mesh(alone):
    _, spread = steps_on(data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(spread, alone[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_optimiser_begins_anew_with_the_layers_of_a_period_and_goes_on_with_the_rest(name, monkeypatch):
    monkeypatch.setattr(adam_8bit, "SMALLEST", 1)  # of what adamw8bit keeps in float32
    params, gradients = tree(0), [tree(seed, scale) for seed, scale in enumerate([1.0, 3.0, 0.2], 1)]
    restarting, plain = (optimizer_of(name, params, clip_norm=None, restarts=restarts) for restarts in (True, False))

    move = jax.jit(lambda gradient, state, period: restarting.move(gradient, state, params, period=period))
    plain_move = jax.jit(lambda gradient, state: plain.move(gradient, state, params))
    state, fresh = jax.jit(restarting.init)(params), jax.jit(plain.init)(params)
    old = fresh
    for gradient, period in zip(gradients, (0, 0, 1), strict=True):
        found, state, _ = move(gradient, state, jnp.int32(period))
        on, old, _ = plain_move(gradient, old)
    anew, _, _ = plain_move(gradients[-1], fresh)
    found, on, anew = (flat(moved) for moved in (found, on, anew))
    for update in found:
        expected, other = (anew, on) if "layers/" in update else (on, anew)
        np.testing.assert_allclose(found[update], expected[update], rtol=2.4e-7, atol=1e-8, err_msg=update)
        assert np.abs(found[update] - other[update]).max() > 1e-5


def test_layers_are_drawn_uniformly_and_stay_for_a_period():
    trainable = Trainable(layers=2, period=3, seed=5)
    rows_of = lambda trainable: jax.vmap(lambda step: trainable.split(PARAMS, step)[1].rows)(jnp.arange(6000))  # noqa: E731
    drawn = np.sort(rows_of(trainable), axis=1)
    assert (drawn.reshape(2000, 3, 2) == drawn[::3, None]).all()
    pairs, counts = np.unique(drawn[::3], axis=0, return_counts=True)
    assert len(pairs) == 10 and (pairs[:, 0] < pairs[:, 1]).all()
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared with 9 degrees of freedom, one in a thousand
    other = rows_of(dataclasses.replace(trainable, seed=6))
    assert not np.array_equal(drawn, np.sort(other, axis=1))


def test_norms_of_named_layers_learn_alone():
    trainable = of_layers([-1, 3], None, NORMS_ALONE, PARAMS, 0)
    assert trainable == Trainable(NORMS_ALONE, (3, 4))
    optimizer = make_optimizer(
        trainable.may_learn(PARAMS),
        OptimSettings(name="adamw", weight_decay=DECAY, clip_norm=None),
        optax.constant_schedule(LR),
    )
    state = state_of(PARAMS, optimizer, trainable, ema=False)
    assert sum(x.size for x in jax.tree.leaves(state["opt_state"])) == 2 * (2 * 2 * 16 + 16) + 2  # and two counts
    update = jax.jit(make_update(LOSS, optimizer, optax.constant_schedule(LR), trainable))
    for step in range(2):
        state, metrics = update(state, batch_of(step))
    moved = {name: value != flat(PARAMS)[name] for name, value in flat(state["params"]).items()}
    assert {name for name, where in moved.items() if where.any()} == {
        "norm/scale",
        "layers/attention_norm/scale",
        "layers/mlp_norm/scale",
    }
    for name in ("attention_norm", "mlp_norm"):
        assert moved[f"layers/{name}/scale"].all(axis=1).tolist() == [False, False, False, True, True]
        assert not moved[f"layers/{name}/scale"][:3].any()
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(trainable.may_learn(state["params"])))


# Runs

SHORT = ["--config.total_steps=12", "--config.data.heldout=0.0"]


def test_a_run_learns_and_goes_on_in_the_middle_of_a_period_with_the_same_bits(
    arguments, metrics, tmp_path, one_device
):
    turns = [*SHORT, OFTEN, "--config.lisa.layers=1", "--config.lisa.period_steps=3"]
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert main([*arguments("pretrain", straight), *turns]) == 0
    losses = [line["train/loss"] for line in metrics(straight).values()]
    assert np.mean(losses[-4:]) < 0.7 * losses[0]
    state = stored_state(straight)
    assert state["params"]["layers"]["mlp"]["up"].shape == (2, 64, 192)
    assert state["opt_state"][1]["layers"]["mu"]["layers"]["mlp"]["up"].shape == (1, 64, 192)
    shutil.copytree(straight, cut)
    shutil.rmtree(cut / "checkpoints" / "12")  # it goes on from step 8, the last of its period
    assert main([*arguments("pretrain", cut), *turns]) == 0
    assert_same_bits(stored_state(cut), state)


@pytest.mark.parametrize(
    ("layers", "period", "message"),
    [
        (6, 2, "config.lisa.layers 6: the network has 5"),
        (2, None, "config.lisa.period_steps: say for how many steps"),
        ([-1], 2, "config.lisa.period_steps: layers that are named never change"),
        ([4, -1], None, "names each once"),
        ([5], None, r"config.lisa.layers \[5\]: give a number of layers, or a list"),
        ("all", None, "config.lisa.layers 'all'"),
    ],
)
def test_layers_that_cannot_be_are_refused(layers, period, message):
    with pytest.raises(UserError, match=message):
        of_layers(layers, period, ALL, PARAMS, 0)


def test_layers_that_are_all_frozen_cannot_be_thawed():
    with pytest.raises(UserError, match="freezes all of layers/"):
        of_layers(2, 2, ((r"layers/.*", True), (r".*", False)), PARAMS, 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["lisa.layers=2", "lisa.period_steps=2", "lora.targets=[('layers/.*', 4)]"],
            "config.lisa and config.lora: .* choose one",
        ),
        (["lisa.period_steps=2"], "no meaning without config.lisa.layers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message, arguments):
    _, config, _ = arguments("sft", "unused", init_from="x")
    with pytest.raises(UserError, match=message):
        read_config(load_config(config.removeprefix("--config="), [f"--config.{line}" for line in overrides]))
