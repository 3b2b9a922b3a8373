"""Optimisers against their papers' formulas in numpy, schedules at their corners, and who is decayed, frozen, moved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from camelid.errors import UserError
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import map_rules, path_name
from camelid.train import adam_8bit
from camelid.train.optimizer import (
    DECAY,
    DEFAULTS,
    OptimSettings,
    _matrix_axes,
    make_optimizer,
    make_schedule,
    waiting,
)
from camelid.train.trainable import join_frozen, split_frozen

ALL = ((r".*", False),)


def tree(seed, scale=1.0):
    """Named and shaped as the network's parameters."""
    shapes = {
        "embed/embedding": (12, 8),
        "layers/attention/q": (2, 8, 2, 4),
        "layers/attention/o": (2, 2, 4, 8),
        "layers/attention_norm/scale": (2, 8),
        "layers/mlp/up": (2, 8, 16),
        "norm/scale": (8,),
    }
    rng = np.random.default_rng(seed)
    nested = {}
    for name, shape in shapes.items():
        *folders, leaf = name.split("/")
        section = nested
        for folder in folders:
            section = section.setdefault(folder, {})
        section[leaf] = (scale * rng.normal(size=shape)).astype(np.float32)
    return nested


def flat(nested):
    leaves = jax.tree_util.tree_leaves_with_path(nested)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64) for path, x in leaves}


def optimizer_of(params, name="adamw", lr=0.01, **changes):
    restarts, schedule = changes.pop("restarts", False), changes.pop("schedule", optax.constant_schedule(lr))
    settings = OptimSettings(name=name, **(dict(weight_decay=0.1, clip_norm=None) | changes))
    return make_optimizer(params, settings, schedule, restarts=restarts)


def run(optimizer, params, gradients):
    """Parameters after each gradient."""
    move, state, path = jax.jit(optimizer.move), jax.jit(optimizer.init)(params), []
    for gradient in gradients:
        before = params
        params, state, norm = move(gradient, state, before)
        moved = jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), params, before)
        np.testing.assert_allclose(norm, np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(moved))), rtol=0.02)
        path.append(params)
    return path


def assert_equal_trees(found, expected, **tolerance):
    found = flat(found)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def test_adamw_with_clipping_decay_mask_and_multipliers_equals_a_loop_in_numpy():
    params, gradients = tree(0), [tree(seed, scale) for seed, scale in enumerate([1.0, 0.01, 3.0, 0.02, 1.0], 1)]
    schedule = make_schedule(name="cosine", lr=0.01, total_steps=5, warmup_steps=2, final=0.1)
    multipliers = ((r"embed/.*", 0.5), (r".*/up", 2.0), (r".*", 1.0))
    optimizer = optimizer_of(params, schedule=schedule, clip_norm=1.0, lr_multipliers=multipliers)

    p, clipped = flat(params), 0
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    rates = [0.005, 0.01, 0.01, 0.01 * (0.1 + 0.9 * 0.75), 0.01 * (0.1 + 0.9 * 0.25)]  # cosine's thirds
    for t, found in enumerate(run(optimizer, params, gradients), 1):
        g = flat(gradients[t - 1])
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        clipped += norm > 1
        for name in p:
            gradient = g[name] / max(norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.95 * v[name] + 0.05 * gradient**2
            direction = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.0 if name.endswith("norm/scale") else 0.1
            pace = {"embed/embedding": 0.5, "layers/mlp/up": 2.0}.get(name, 1.0)
            p[name] = p[name] - rates[t - 1] * pace * (direction + decay * p[name])
        assert_equal_trees(found, p)
    assert clipped == 3  # some were, some were not


def test_lion_moves_by_the_sign_of_its_interpolated_momentum():
    params, gradients = tree(0), [tree(seed) for seed in (1, 2, 3)]
    p = flat(params)
    m = {name: np.zeros_like(x) for name, x in p.items()}
    for found, gradient in zip(run(optimizer_of(params, "lion"), params, gradients), gradients, strict=True):
        for name, g in flat(gradient).items():
            decay = 0.0 if name.endswith("norm/scale") else 0.1
            p[name] = p[name] - 0.01 * (np.sign(0.9 * m[name] + 0.1 * g) + decay * p[name])
            m[name] = 0.99 * m[name] + 0.01 * g
        assert_equal_trees(found, p)


def test_adafactor_equals_the_papers_algorithm_with_factored_moments():
    rng = np.random.default_rng(0)
    params = {"head": {"kernel": rng.normal(size=(128, 160)).astype(np.float32)}}
    gradients = [{"head": {"kernel": (rng.normal(size=(128, 160)) ** 3).astype(np.float32)}} for _ in range(3)]
    optimizer = optimizer_of(params, "adafactor")
    p, rows, columns = np.asarray(params["head"]["kernel"], np.float64), np.zeros(128), np.zeros(160)
    for t, found in enumerate(run(optimizer, params, gradients), 1):
        g = np.asarray(gradients[t - 1]["head"]["kernel"], np.float64)
        rate = 1 - t**-0.8
        rows = rate * rows + (1 - rate) * (g**2).mean(axis=1)
        columns = rate * columns + (1 - rate) * (g**2).mean(axis=0)
        direction = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        direction /= max(1.0, np.sqrt((direction**2).mean()))
        p = p - 0.01 * (np.sqrt((p**2).mean()) * direction + 0.1 * p)
        np.testing.assert_allclose(found["head"]["kernel"], p, rtol=1e-4, atol=1e-5)
    assert sum(x.size for x in jax.tree.leaves(optimizer.init(params))) < 0.05 * 128 * 160


def test_muon_orthogonalises_the_matrices_of_each_layer_and_leaves_the_rest_to_adam():
    params, gradient = tree(0), tree(1)
    [moved] = run(optimizer_of(params, "muon", lr=1.0, weight_decay=0.0), params, [gradient])
    [adam] = run(optimizer_of(params, "adamw", lr=1.0, weight_decay=0.0), params, [gradient])
    step = jax.tree.map(lambda new, old: np.asarray(old - new), moved, params)
    for name in ("embed", "norm"):
        assert_equal_trees(moved[name], flat(adam[name]))
    assert_equal_trees(moved["layers"]["attention_norm"], flat(adam["layers"]["attention_norm"]))
    matrices = {  # in -> out, one for each layer
        "q": (step["layers"]["attention"]["q"].reshape(2, 8, 8), gradient["layers"]["attention"]["q"].reshape(2, 8, 8)),
        "o": (step["layers"]["attention"]["o"].reshape(2, 8, 8), gradient["layers"]["attention"]["o"].reshape(2, 8, 8)),
        "up": (step["layers"]["mlp"]["up"], gradient["layers"]["mlp"]["up"]),
    }
    for found, given in matrices.values():
        for layer in range(2):
            left, _, right = np.linalg.svd(given[layer], full_matrices=False)
            scale = 0.2 * np.sqrt(max(given[layer].shape))  # an RMS like AdamW's
            singular = np.linalg.svd(found[layer] / scale, compute_uv=False)
            assert singular.min() > 0.65 and singular.max() < 1.25  # five Newton-Schulz steps come this near to 1
            assert np.sum(found[layer] / scale * (left @ right)) / len(left) > 0.8  # and to the polar factor


def test_norms_and_biases_are_neither_decayed_nor_orthogonalised():
    config = LlamaConfig.preset("nano-test", tied=False, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
    abstract = llama.build(config).abstract_params
    decayed = {name for name, decays in flat_rules(DECAY, abstract).items() if decays}
    matrices = {f"layers/attention/{name}" for name in "qkvo"} | {
        f"layers/mlp/{name}" for name in ("gate", "up", "down")
    }
    assert decayed == matrices | {"embed/embedding", "head/kernel"}
    assert {name for name in flat_rules(DECAY, abstract) if _matrix_axes(name) is not None} == matrices


def flat_rules(rules, tree) -> dict:
    return {path_name(path): value for path, value in jax.tree_util.tree_leaves_with_path(map_rules(rules, tree))}


def test_muon_decays_once_and_by_the_same_mask_as_adamw():
    params, gradient = tree(0), tree(1)
    [plain] = run(optimizer_of(params, "muon", lr=0.1, weight_decay=0.0), params, [gradient])
    [decayed] = run(optimizer_of(params, "muon", lr=0.1, weight_decay=0.5), params, [gradient])
    for name, p in flat(params).items():
        decay = 0.0 if name.endswith("norm/scale") else 0.5
        np.testing.assert_allclose(flat(plain)[name] - flat(decayed)[name], 0.1 * decay * p, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_frozen_parameters_have_no_optimiser_state(name):
    params = tree(0)
    trainable, rest = split_frozen(params, ((r"embed/.*|layers/attention/.*", True), *ALL))
    assert set(flat(trainable)) == {"layers/attention_norm/scale", "layers/mlp/up", "norm/scale"}
    assert set(flat(rest)) == {"embed/embedding", "layers/attention/q", "layers/attention/o"}
    assert_equal_trees(join_frozen(trainable, rest), flat(params), rtol=0, atol=0)
    state = optimizer_of(trainable, name).init(trainable)
    names = set(flat(state))
    assert any("mlp/up" in path for path in names)
    assert not any("embed" in path or "/attention/" in path for path in names)
    moments = {"adamw": 2, "lion": 1, "adafactor": 1, "muon": 2}[name]
    assert sum(x.nbytes for x in jax.tree.leaves(state)) < 4 * moments * (2 * 8 + 2 * 8 * 16 + 8) + 100
    [moved] = run(
        optimizer_of(trainable, name),
        trainable,
        [split_frozen(tree(1), ((r"embed/.*|layers/attention/.*", True), *ALL))[0]],
    )
    assert all(np.abs(x - flat(params)[path]).max() > 1e-4 for path, x in flat(moved).items())


def test_a_multiplier_of_zero_stands_still_but_keeps_state_and_counts_when_clipping():
    params = tree(0)
    still = ((r"embed/.*", 0.0), (r".*", 1.0))
    optimizer = optimizer_of(params, lr_multipliers=still)
    [moved] = run(optimizer, params, [tree(1)])
    np.testing.assert_array_equal(moved["embed"]["embedding"], params["embed"]["embedding"])
    assert np.abs(moved["norm"]["scale"] - params["norm"]["scale"]).min() > 1e-4
    assert any("embed" in path for path in flat(optimizer.init(params)))


def test_a_cosine_rises_from_the_first_step_and_ends_at_a_tenth():
    rate = make_schedule(name="cosine", lr=2.0, total_steps=110, warmup_steps=10, final=0.1)
    assert rate(0) == pytest.approx(0.2)
    assert rate(9) == pytest.approx(2.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.1)  # half way between 2 and 0.2
    assert rate(109) == pytest.approx(0.2, rel=0.01)
    assert rate(110) == rate(500) == pytest.approx(0.2)


def test_linear_and_constant_schedules_at_their_corners():
    linear = make_schedule(name="linear", lr=1.0, total_steps=20, warmup_steps=0, final=0.5)
    assert [linear(step) for step in (0, 10, 20, 30)] == pytest.approx([1.0, 0.75, 0.5, 0.5])
    constant = make_schedule(name="constant", lr=1.0, total_steps=20, warmup_steps=4, final=0.5)
    assert [constant(step) for step in (0, 1, 3, 4, 20)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0])


def test_wsd_stays_at_the_top_and_falls_over_its_last_steps():
    rate = make_schedule(name="wsd", lr=1.0, total_steps=100, warmup_steps=10, final=0.1, decay_steps=20)
    assert [rate(step) for step in (0, 9, 10, 50, 80, 90, 100)] == pytest.approx([0.1, 1, 1, 1, 1, 0.55, 0.1])


def test_a_warm_up_as_long_as_the_run_and_one_of_a_single_step_are_fine():
    whole = make_schedule(name="cosine", lr=1.0, total_steps=4, warmup_steps=4, final=0.1)
    assert [whole(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    one = make_schedule(name="linear", lr=1.0, total_steps=11, warmup_steps=1, final=0.0)
    assert [one(step) for step in (0, 1, 6, 11)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cosin"}, "no schedule 'cosin'; give cosine, linear, wsd or constant"),
        ({"warmup_steps": 11}, "warm-up of 11 steps in a run of 10"),
        ({"name": "wsd"}, "wsd needs a length of decay"),
        ({"name": "wsd", "decay_steps": 9}, "wsd needs a length of decay that fits"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_users_error(changes, message):
    arguments = dict(name="cosine", lr=1.0, total_steps=10, warmup_steps=2, final=0.1)
    with pytest.raises(UserError, match=message):
        make_schedule(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adamv"}, "no optimiser 'adamv'; give one of adamw, adamw8bit, lion"),
        ({"name": "lion", "eps": 1e-8}, "lion does not take eps; it takes b1, b2"),
        ({"momentum": 0.9, "ns_steps": 3}, "adamw does not take momentum, ns_steps"),
        ({"lr_multipliers": ((r"embed/.*", 1.0),)}, "config.optim.lr_multipliers: no pattern .* matches parameter"),
        ({"decay": ((r".*/kernel", True),)}, "config.optim.decay: no pattern .* matches parameter"),
        ({"decay": ((r"(", True),)}, "config.optim.decay: missing \\)"),
    ],
)
def test_an_optimiser_that_cannot_be_is_a_users_error(changes, message):
    with pytest.raises(UserError, match=message):
        optimizer_of(tree(0), **changes)


def test_an_argument_of_none_means_the_optimisers_own_default():
    params, gradient = tree(0), tree(1)
    [default] = run(optimizer_of(params), params, [gradient])
    [none] = run(optimizer_of(params, b1=None, momentum=None, decay_rate=None), params, [gradient])
    [eps] = run(optimizer_of(params, eps=1.0), params, [gradient])
    assert_equal_trees(none, flat(default), rtol=0, atol=0)
    assert np.abs(eps["norm"]["scale"] - default["norm"]["scale"]).max() > 1e-3


def test_freezing_everything_and_rules_without_a_match_are_users_errors():
    with pytest.raises(UserError, match="freezes every parameter"):
        split_frozen(tree(0), ((r".*", True),))
    with pytest.raises(UserError, match=r"config.optim.frozen: no pattern .* matches parameter 'layers/attention/o'"):
        split_frozen(tree(0), ((r"embed/.*", True),))


def test_splitting_works_on_shapes_alone():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree(0))
    trainable, _ = split_frozen(shapes, ((r"embed/.*", True), *ALL))
    assert optimizer_of(trainable).init(tree(0) | {"embed": {"embedding": None}}) is not None


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_optimisers_state_is_float32_whatever_parameters_are_stored_in(name, monkeypatch):
    monkeypatch.setattr(adam_8bit, "SMALLEST", 1)
    gradients = [tree(seed) for seed in (1, 2)]
    halves, *coarse = (jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), x) for x in (tree(0), *gradients))
    whole, *same = (jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (halves, *coarse))
    optimizer = optimizer_of(halves, name, clip_norm=1.0)
    before = optimizer.init(halves)
    moved, after, norm = jax.jit(optimizer.move)(coarse[0], before, halves, jax.random.key(0))
    assert jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(lambda x: x.dtype, after)
    floats = {x.dtype for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floats <= {jnp.dtype("float32")}
    expected, state, _ = jax.jit(optimizer.move)(same[0], optimizer.init(whole), whole)
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype("bfloat16")}
    assert_equal_trees(after, flat(state))
    # Each is one of the two numbers in bfloat16 about that in float32, and the norm is of what was stored.
    up, old = (jax.tree.map(lambda x: np.asarray(x, np.float64), flat(x)) for x in (moved, halves))
    for name, x in flat(expected).items():
        assert np.all(np.abs(up[name] - np.asarray(x, np.float64)) <= np.abs(x) * 2.0**-7)
    np.testing.assert_allclose(norm, np.sqrt(sum(np.sum((up[name] - old[name]) ** 2) for name in up)), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
def test_a_network_that_waits_is_not_moved_and_begins_as_from_a_new_optimiser(name):
    settings = OptimSettings(name=name, weight_decay=0.5)
    rate = make_schedule(name="linear", lr=0.1, total_steps=8, warmup_steps=0, final=0.0)
    params, later, key = jax.tree.map(jnp.asarray, tree(0)), lambda count: rate(count + 3), jax.random.key(0)
    fresh = make_optimizer(params, settings, later)
    optimizer = waiting(fresh, 3)
    state, move = optimizer.init(params), jax.jit(optimizer.move)
    for _ in range(3):
        moved, new, norm = move(jax.tree.map(jnp.zeros_like, params), state, params, key)
        assert float(norm) == 0
        jax.tree.map(np.testing.assert_array_equal, (moved, new), (params, state))
    expected = jax.jit(fresh.move)(tree(1), fresh.init(params), params, key)
    jax.tree.map(np.testing.assert_array_equal, move(tree(1), state, params, key), expected)
    assert float(expected[2]) > 0


def test_a_network_that_is_frozen_whole_beside_one_that_learns_has_an_optimiser_of_nothing():
    optimizer = waiting(make_optimizer({}, OptimSettings(), lambda count: 0.1), 3)
    state = optimizer.init({})
    assert bool(optimizer.finite({}, state, {}, jnp.int32(0)))
    moved, _, norm = optimizer.move({}, state, {}, jax.random.key(0))
    assert moved == {} and float(norm) == 0
