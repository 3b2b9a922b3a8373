"""One step against numpy: sums over parts, skipped steps, averages, metrics; and where each part of a state lives."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from camelid.errors import UserError
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import PARTITION_RULES, make_mesh
from camelid.train.by_layer import round_stochastically
from camelid.train.optimizer import OptimSettings, each_part, make_optimizer, make_schedule
from camelid.train.state import state_of, state_shardings
from camelid.train.trainable import Trainable, split_frozen
from camelid.train.update import Guard, make_update

NONE = Trainable()
EMA = 0.9


def squares(params, rows):
    """A loss in the form that `make_update` takes: squared errors of a linear model over the tokens of a mask."""
    error = jnp.einsum("btd,d->bt", rows["x"], params["line"]["w"]) + params["line"]["b"] - rows["y"]
    nll = jnp.sum(rows["mask"] * error**2)
    return nll, jnp.sum(rows["mask"]), {"absolute": jnp.sum(rows["mask"] * jnp.abs(error))}


def batch_of(seed, counts=(4, 1, 0, 3, 2, 2, 4, 4)):
    """Eight rows of four tokens, of which `counts` are trained on."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(8, 4, 3)).astype(np.float32),
        "y": rng.normal(size=(8, 4)).astype(np.float32),
        "mask": (np.arange(4)[None, :] < np.array(counts)[:, None]).astype(np.float32),
    }


def first_state(optimizer, ema=True):
    params = {"line": {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.float32(0.1)}}
    return state_of(params, optimizer, NONE, ema=ema)


SCHEDULE = make_schedule(name="linear", lr=0.1, total_steps=40, warmup_steps=4, final=0.1)
ADAMW = make_optimizer(
    first_state(optax.identity())["params"], OptimSettings(name="adamw", weight_decay=0.1, clip_norm=0.5), SCHEDULE
)


def compiled(**options):
    options = dict(guard=Guard(spike_sigma=10.0, warmup_steps=5), ema_decay=EMA) | options
    return jax.jit(make_update(squares, ADAMW, SCHEDULE, **options))


update = compiled()


def after(steps, update=update):
    state = first_state(ADAMW)
    for step in range(steps):
        state, _ = update(state, batch_of(step))
    return state


def numpy_gradient(params, batch):
    w, b = (np.asarray(params["line"][name], np.float64) for name in ("w", "b"))
    x, y, mask = (batch[name].astype(np.float64) for name in ("x", "y", "mask"))
    error = (x @ w + b - y) * mask
    tokens = mask.sum()
    gradient = np.append(2 * np.einsum("bt,btd->d", error, x), 2 * error.sum()) / tokens
    return gradient, (error**2).sum() / tokens, np.abs(error).sum() / tokens


def vector(params):
    return np.append(np.asarray(params["line"]["w"], np.float64), params["line"]["b"])


def assert_same_bits(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_metrics_of_a_step_equal_their_definitions():
    state, batch = after(2), batch_of(7)
    gradient, loss, absolute = numpy_gradient(state["params"], batch)
    new, metrics = update(state, batch)
    expected = {
        "loss": loss,
        "absolute": absolute,
        "grad_norm": np.linalg.norm(gradient),
        "update_norm": np.linalg.norm(vector(new["params"]) - vector(state["params"])),
        "param_norm": np.linalg.norm(vector(new["params"])),
        "lr": 0.1 * 3 / 4,
        "tokens": 20,
        "skipped": 0,
        "streak": 0,
    }
    assert metrics.keys() == expected.keys()
    assert np.linalg.norm(gradient) > 0.5  # clipped, and reported unclipped
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulating_over_parts_with_unequal_numbers_of_tokens_changes_nothing(parts):
    state, batch = after(1), batch_of(3, counts=(4, 0, 1, 1, 4, 1, 0, 0))
    whole, whole_metrics = update(state, batch)
    split, split_metrics = compiled(accumulate=parts)(state, batch)
    for a, b in zip(jax.tree.leaves((split, split_metrics)), jax.tree.leaves((whole, whole_metrics)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    gradients = []  # what would come out of averaging the parts' means, the usual mistake
    for part in range(parts):
        rows = {name: x[part::parts] for name, x in batch.items()}
        gradients.append(numpy_gradient(state["params"], rows)[0])
    right = numpy_gradient(state["params"], batch)[0]
    assert np.linalg.norm(np.mean(gradients, axis=0) - right) > 0.1 * np.linalg.norm(right)


@pytest.mark.parametrize("parts", [1, 2])
def test_no_two_passes_over_parts_are_perturbed_alike(parts):
    def shifted(params, number):
        return {"line": params["line"] | {"b": params["line"]["b"] + number}}

    state, batch = after(3), batch_of(3)
    loss = compiled(accumulate=parts, perturb=shifted)(state, batch)[1]["loss"]
    total = 0.0
    for part in range(parts):
        rows = {name: x[part::parts] for name, x in batch.items()}
        total += numpy_gradient(shifted(state["params"], 3 * parts + part), rows)[1] * rows["mask"].sum()
    np.testing.assert_allclose(loss, total / batch["mask"].sum(), rtol=1e-5)


def test_the_average_of_parameters_follows_its_formula():
    state, average = first_state(ADAMW), vector(first_state(ADAMW)["params"])
    for step in range(4):
        state, _ = update(state, batch_of(step))
        average = EMA * average + (1 - EMA) * vector(state["params"])
        np.testing.assert_allclose(vector(state["ema"]), average, rtol=1e-6)
    assert "ema" not in first_state(ADAMW, ema=False)


def poisoned(kind):
    batch = batch_of(9)
    if kind == "spike":
        batch["y"] += 1e4
    else:
        batch["x"][3, 1, 0] = {"nan": np.nan, "infinity": np.inf}[kind]
    return batch


@pytest.mark.parametrize("kind", ["nan", "infinity", "spike"])
def test_a_bad_step_changes_nothing_but_the_counters(kind):
    state = after(6)
    new, metrics = update(state, poisoned(kind))
    for part in ("params", "opt_state", "ema"):
        assert_same_bits(new[part], state[part])
    assert new["step"] == state["step"] + 1 == 7
    assert (metrics["skipped"], metrics["streak"], metrics["update_norm"]) == (1, 1, 0)
    unchanged = {"mean", "var", "accepted"}
    assert_same_bits({k: new["guard"][k] for k in unchanged}, {k: state["guard"][k] for k in unchanged})

    again, metrics = update(new, poisoned(kind))
    assert (metrics["skipped"], metrics["streak"]) == (2, 2)
    recovered, metrics = update(again, batch_of(6))
    assert (metrics["skipped"], metrics["streak"]) == (2, 0)
    straight, straight_metrics = update(state, batch_of(6))  # as if the bad batches had never been
    for part in ("params", "opt_state", "ema"):
        assert_same_bits(recovered[part], straight[part])
    assert metrics["lr"] == straight_metrics["lr"] == SCHEDULE(6)


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    def root(params, rows):
        return jnp.sqrt(jnp.sum(params["line"]["w"] * rows["x"])), 1.0, {}

    step = jax.jit(make_update(root, ADAMW, SCHEDULE, guard=Guard(), ema_decay=EMA))
    state = first_state(ADAMW)
    new, metrics = step(state, {"x": np.zeros(3, np.float32)})
    assert metrics["loss"] == 0 and not np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    assert_same_bits(new["params"], state["params"])


def test_a_spike_is_let_through_before_the_guard_is_warm_and_when_there_is_none():
    for steps, options, skipped in [(4, {}, 0), (5, {}, 1), (5, {"guard": Guard(None, 0)}, 0)]:
        step = compiled(**options)
        _, metrics = step(after(steps, step), poisoned("spike"))
        assert metrics["skipped"] == skipped


def test_a_border_of_the_guard_is_some_deviations_above_the_running_mean():
    losses = []
    state = first_state(ADAMW)
    for step in range(8):
        state, metrics = update(state, batch_of(step))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(state["guard"]["mean"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(state["guard"]["var"], np.var(losses), rtol=1e-4)


def test_frozen_parameters_stay_and_the_others_move_as_alone():
    frozen = ((r"line/b", True), (r".*", False))
    params = first_state(ADAMW)["params"]
    trainable, _ = split_frozen(params, frozen)
    optimizer = make_optimizer(trainable, OptimSettings(name="adamw", weight_decay=0.1, clip_norm=None), SCHEDULE)
    state = state_of(params, optimizer, Trainable(frozen), ema=False)
    new, metrics = jax.jit(make_update(squares, optimizer, SCHEDULE, Trainable(frozen)))(state, batch_of(0))
    gradient, _, _ = numpy_gradient(params, batch_of(0))
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient[:3]), rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"], np.linalg.norm(new["params"]["line"]["w"]), rtol=1e-6)
    assert new["params"]["line"]["b"] == params["line"]["b"]
    assert np.abs(new["params"]["line"]["w"] - params["line"]["w"]).min() > 1e-3


def nano_state(name, mesh):
    """Shapes of a network's state with their shardings, and the function that makes it."""
    model = llama.build(LlamaConfig.preset("nano-test"))
    schedule = optax.constant_schedule(1e-3)
    optimizer = make_optimizer(
        model.abstract_params, OptimSettings(name=name, weight_decay=0.1, clip_norm=1.0), schedule
    )
    init = lambda key: state_of(model.init(key), optimizer, NONE, ema=True)  # noqa: E731
    abstract = jax.eval_shape(init, jax.random.key(0))
    return model, init, abstract, state_shardings(abstract, mesh, PARTITION_RULES)


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("lion", 1), ("muon", None)])
def test_every_moment_and_average_lies_where_its_parameter_lies(name, moments):
    _, _, abstract, shardings = nano_state(name, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    params = by_path(shardings["params"])
    assert params["embed/embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert by_path(shardings["ema"]) == params
    shapes, found = by_path(abstract["opt_state"]), dict.fromkeys(params, 0)
    for path, sharding in by_path(shardings["opt_state"]).items():
        owner = [p for p in params if path.endswith(p)]
        if owner and shapes[path].size > 1:
            assert sharding == params[owner[0]], path
            found[owner[0]] += 1
        else:
            assert sharding.is_fully_replicated
    matrix = re.compile(r"layers/(attention|mlp)/")
    assert found == {p: moments or (1 if matrix.match(p) else 2) for p in params}


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_moments_of_several_networks_lie_where_those_of_one_network_do(name):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = llama.build(LlamaConfig.preset("nano-test")).abstract_params
    optimizer = make_optimizer(params, OptimSettings(name=name), SCHEDULE)
    both = each_part({"policy": optimizer, "critic": optimizer})
    states = [
        jax.eval_shape(lambda params, optimizer=each: state_of(params, optimizer, NONE, ema=False), tree)
        for each, tree in ((optimizer, params), (both, {"policy": params, "critic": params}))
    ]
    alone, together = (by_path(state_shardings(each, mesh, PARTITION_RULES)["opt_state"]) for each in states)
    assert not all(sharding.is_fully_replicated for sharding in alone.values())
    for network in ("policy", "critic"):
        assert {path: together[f"{network}/{path}"] for path in alone} == alone


def test_a_state_is_made_already_sharded_and_never_whole_on_one_device():
    mesh = make_mesh({"fsdp": 8})
    model, init, abstract, shardings = nano_state("adamw", mesh)
    with jax.set_mesh(mesh):
        program = jax.jit(init, out_shardings=shardings).lower(jax.random.key(0)).compile()
        state = program(jax.random.key(0))
    largest = max(leaf.size for leaf in jax.tree.leaves(abstract["params"]))
    shapes = re.findall(r"\b(?:f32|u32|s32)\[([\d,]+)\]", program.as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) <= largest // 4  # a part, and its random bits
    for path, leaf in by_path(state).items():
        whole = leaf.size == 1 or "norm" in path
        assert leaf.addressable_shards[0].data.size == (leaf.size if whole else leaf.size // 8), path
    alone = jax.jit(model.init)(jax.random.key(0))
    for a, b in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # the same numbers on any number of devices


def test_freezing_everything_is_refused_when_the_step_is_built():
    with pytest.raises(UserError, match="freezes every parameter"):
        compiled(trainable=Trainable(((r".*", True),)))(first_state(ADAMW), batch_of(0))


# Steps that are not taken


def assert_all_but_the_step_stays(before, after):
    assert after["step"] == before["step"] + 1
    assert_same_bits({k: v for k, v in after.items() if k != "step"}, {k: v for k, v in before.items() if k != "step"})


@pytest.mark.parametrize("parts", [1, 4])
def test_a_batch_without_a_token_changes_nothing_but_the_step(parts):
    step = compiled(accumulate=parts)
    state = after(3, step)
    new, metrics = step(state, batch_of(9, counts=(0,) * 8))
    assert_all_but_the_step_stays(state, new)
    assert (metrics["tokens"], metrics["update_norm"], metrics["loss"], metrics["streak"]) == (0, 0, 0, 0)
    assert metrics["lr"] == pytest.approx(0.1 * 4 / 4)  # that of the next step that has one


def test_a_part_without_a_token_leaves_the_step_that_of_the_others():
    state, batch = after(1), batch_of(3, counts=(4, 0, 1, 0, 4, 0, 2, 0))
    split, whole = compiled(accumulate=2)(state, batch), update(state, batch)
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


NEAR_THE_END = {  # the largest parameter, the learning rate, the weight decay, the dtype: is the step taken?
    "a usual step": (2.0, 0.1, 0.1, "float32", True),
    "a learning rate that overflows": (2.0, np.inf, 0.0, "float32", False),
    "a learning rate that is none": (2.0, np.nan, 0.0, "float32", False),
    "a decay that outgrows float32": (3e38, 1.0, 1000.0, "float32", False),
    "a parameter near the end of float32": (3.3e38, 1e-3, 0.1, "float32", True),
    "a decay past the end of bfloat16": (3.38e38, 2.004, 1.0, "bfloat16", False),
    "a parameter near the end of bfloat16": (3.3e38, 1e-3, 0.1, "bfloat16", True),
}
OPTIMIZERS = ("adamw", "adamw8bit", "lion", "adafactor", "muon", "adamw offload")


def by_size(params, rows):
    """A loss with the same gradient for every trained number, but for the first 128 of a large parameter: none."""
    parts = [x.reshape(-1)[(128 if x.size > 1000 else 0) :] for x in jax.tree.leaves(params)]
    small = sum(jnp.mean(x.astype(jnp.float32) * 1e-30) for x in parts)
    return small * (jnp.mean(rows["slope"]) * 1e30), jnp.float32(1.0), {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_not_taken_where_parameters_would_not_be_finite_and_nowhere_else(name):
    name, *offload = name.split()
    for case, (size, lr, decay, dtype, taken) in NEAR_THE_END.items():
        params = {"layers": {"mlp": {"up": jnp.full((2, 4, 8), 0.5, dtype)}}, "norm": {"scale": jnp.ones(4, dtype)}}
        params["norm"]["scale"] = params["norm"]["scale"].at[0].set(size)
        options = dict(weight_decay=decay, clip_norm=1.0, decay=((r".*", True),), offload=bool(offload))
        optimizer = make_optimizer(params, OptimSettings(name=name, **options), lambda _, lr=lr: jnp.float32(lr))
        state = state_of(params, optimizer, NONE, ema=True)
        update = make_update(by_size, optimizer, lambda _, lr=lr: lr, ema_decay=EMA, accumulate=2)
        new, metrics = jax.jit(update)(state, {"slope": jnp.ones((2, 1))})
        taken &= not (name == "adafactor" and size > 1e30)  # its step is relative to the parameters' mean square
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
        assert (metrics["skipped"], metrics["streak"]) == ((0, 0) if taken else (1, 1)), case
        assert (metrics["update_norm"] != 0) == taken, case
        for part in () if taken else ("params", "opt_state", "ema"):
            assert_same_bits(new[part], state[part])
        assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(new["params"]))


def test_a_step_of_adafactor_whose_factored_moments_underflow_is_not_taken():
    params = {"embed": {"embedding": jnp.ones((128, 128))}}  # of which no row but the first has no gradient
    optimizer = make_optimizer(
        params, OptimSettings(name="adafactor", weight_decay=0.0, clip_norm=None), lambda _: jnp.float32(1e-3)
    )
    update = jax.jit(make_update(by_size, optimizer, lambda _: 1e-3))
    for slope, skipped in ((1.0, 0), (1e12, 1)):
        state = state_of(params, optimizer, NONE, ema=False)
        new, metrics = update(state, {"slope": jnp.full((2, 1), slope)})
        assert np.isfinite(metrics["grad_norm"]) and metrics["skipped"] == skipped
        assert np.all(np.isfinite(new["params"]["embed"]["embedding"]))


# Parameters of 16 bits


def halves_after(name, steps, lr, seed=0, dtype=jnp.bfloat16, **options):
    """The parameters of a network of two layers in bfloat16 after steps against a constant gradient."""
    params = {"layers": {"norm": {"scale": jnp.ones((2, 64), dtype)}}, "norm": {"scale": jnp.ones(64, dtype)}}
    optimizer = make_optimizer(
        params, OptimSettings(name=name, weight_decay=0.0, clip_norm=1.0, **options), lambda _: lr
    )

    def loss_fn(params, rows):
        total = sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(params))
        return total, jnp.float32(1.0), {}

    update = jax.jit(make_update(loss_fn, optimizer, lambda _: lr, ema_decay=0.99, seed=seed), donate_argnums=0)
    state = state_of(params, optimizer, NONE, ema=True)
    norms = []
    for _ in range(steps):
        before = jax.tree.map(lambda x: np.asarray(x, np.float32), state["params"])
        state, metrics = update(state, {"x": jnp.zeros((1, 1))})
        moved = jax.tree.map(lambda new, old: np.asarray(new, np.float32) - old, state["params"], before)
        norms.append((metrics["update_norm"], np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(moved)))))
    return state, norms


@pytest.mark.parametrize(
    ("name", "options"), [("adamw", {}), ("adamw8bit", {}), ("lion", {}), ("adamw", {"offload": True})]
)
def test_in_bfloat16_small_updates_add_up_and_their_norm_is_what_was_stored(name, options):
    # A step of 1e-4 is a fortieth of the distance to the next number below 1: nearest rounding would never leave 1.
    state, norms = halves_after(name, 100, 1e-4, **options)
    for leaf in jax.tree.leaves(state["params"]):
        assert leaf.dtype == jnp.bfloat16
        assert np.mean(np.asarray(leaf, np.float32)) == pytest.approx(0.99, abs=1.5e-3)
    np.testing.assert_allclose(*np.transpose(norms), rtol=1e-5)
    average = np.mean([np.mean(x) for x in jax.tree.leaves(state["ema"])])
    assert {x.dtype for x in jax.tree.leaves(state["ema"])} == {jnp.dtype("float32")}
    expected = 1.0 - 1e-4 * sum(1 - 0.99**k for k in range(1, 101))
    assert average == pytest.approx(expected, abs=6e-4)


def test_rounding_is_a_matter_of_the_seed_alone_and_differs_from_step_to_step():
    once, again, other = (halves_after("lion", 3, 1e-3, seed)[0]["params"] for seed in (0, 0, 1))
    once, again, other = (np.asarray(x["layers"]["norm"]["scale"], np.float32) for x in (once, again, other))
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert not np.array_equal(once[0], once[1])


def test_stochastic_rounding_takes_either_neighbour_by_its_nearness():
    x = jnp.float32([1.0 + 2**-9, -1.0 - 2**-9, 1.0, 3e38, 0.0])  # the first two a quarter of the way to the next
    drawn = np.asarray(
        jax.vmap(lambda key: round_stochastically(x, jnp.bfloat16, key))(jax.random.split(jax.random.key(0), 4000)),
        np.float32,
    )
    np.testing.assert_array_equal(np.unique(drawn[:, 0]), np.float32([1.0, 1.0 + 2**-7]))
    np.testing.assert_array_equal(np.unique(drawn[:, 1]), np.float32([-1.0 - 2**-7, -1.0]))
    np.testing.assert_allclose(np.mean(drawn[:, :2], axis=0), np.asarray(x[:2]), atol=1.5e-4)
    assert np.all(drawn[:, 2] == 1.0) and np.all(drawn[:, 4] == 0.0) and np.all(np.isfinite(drawn))
    with pytest.raises(ValueError, match="float16"):
        round_stochastically(x, jnp.float16, jax.random.key(0))


def test_numbers_round_to_the_same_bits_on_any_number_of_devices():
    x, key = jnp.linspace(-2.0, 2.0, 64 * 48).reshape(64, 48), jax.random.key(3)
    rounded = jax.jit(lambda x, key: round_stochastically(x, jnp.bfloat16, key))
    alone = np.asarray(rounded(x, key), np.float32)
    for spec in (PartitionSpec("fsdp"), PartitionSpec("tensor", "fsdp")):
        mesh = make_mesh({"fsdp": 4, "tensor": 2})
        spread = rounded(jax.device_put(x, jax.NamedSharding(mesh, spec)), key)
        assert len(spread.sharding.device_set) == 8
        np.testing.assert_array_equal(np.asarray(spread, np.float32), alone)
