"""PPO's step: what networks say of rows, against a network in numpy, and what an update must not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.model.sharding import BATCH as BATCH_AXES
from camelid.model.sharding import PARTITION_RULES, make_mesh
from camelid.rlhf import critic, ppo, rewards, scalar
from camelid.rlhf.experience import make_rollout
from camelid.rlhf.watch import RATIO_TOLERANCE
from camelid.tests.rlhf.numpy_llama import VOCAB, distributions, hidden, policy, prompts, real_tokens, sampling
from camelid.tests.rlhf.numpy_ppo import AS_IS, HYPER, PENALTY, SHARED, slow_learn, task_of
from camelid.train.by_layer import at_once
from camelid.train.network import InitialParams, together
from camelid.train.state import state_of, state_shardings
from camelid.train.trainable import Trainable
from camelid.train.update import Guard, make_update

# What the networks say of rows ----------------------------------------------------------------------------------------

SMALL = policy()[0].config.replace(n_layers=1, dim=32, n_heads=2, n_kv_heads=2, ffn_dim=48)
OWN = {"critic": critic.Critic("value", scalar.build(SMALL), "")}
CRITICS = {"own": OWN, "shared": SHARED}
PROXY = scalar.build(SMALL, heads=3)
TEMPERATURE = sampling().temperature
BATCH = prompts((3, 11, 7, 16, 1, 9, 12, 5), 16)


@functools.cache
def params_of(kind: str, dtype: str = "float32"):
    """(parameters of the policy and its critic, those that are frozen)."""
    model, params = policy(dtype)
    inits = {"policy": model.init} | {name: critic.init_of(c, model.config) for name, c in CRITICS[kind].items()}
    drawn = jax.jit(together({name: InitialParams(init) for name, init in inits.items()}).init)(jax.random.key(1))
    frozen = {"reference": jax.tree.map(lambda x: 0.9 * x, params), "cost": {}}
    frozen["rewards"] = {"proxy": jax.jit(PROXY.init)(jax.random.key(2))}
    return jax.tree.map(lambda x: 1.5 * x, drawn) | {"policy": params}, frozen


@functools.cache
def actor(kind: str, dtype: str = "float32"):
    graders = rewards.Rewards({"proxy": rewards.ModelReward(PROXY, 1.0, 0.5)}, {})
    act = make_rollout(policy(dtype)[0], CRITICS[kind], graders, None, sampling(), seed=0, score_parts=2)
    return jax.jit(act)


@functools.cache
def acted(kind: str = "own", dtype: str = "float32", step: int = 0) -> ppo.Experience:
    """What a step acts on `BATCH`."""
    params, frozen = params_of(kind, dtype)
    return jax.device_get(actor(kind, dtype)({"params": params, "step": jnp.int32(step)}, frozen, BATCH))


def slow_values(kind, params, tokens_T):
    """What the critic says after each token of a row."""
    trunk = (SMALL, params["critic"]) if kind == "own" else (policy()[0].config, params["policy"])
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["critic"]["score"])
    return (hidden(*trunk, tokens_T) @ head["kernel"] + head["bias"])[:, 0]


@pytest.mark.parametrize("kind", CRITICS)
def test_an_experience_is_what_each_network_says_of_each_row_alone(kind):
    (params, frozen), seen = params_of(kind), acted(kind)
    config = policy()[0].config
    reward_head = jax.tree.map(lambda x: np.asarray(x, np.float64), frozen["rewards"]["proxy"]["score"])
    for r, (prompt, answer) in enumerate(real_tokens(seen.rows)):
        tokens_T, n = np.concatenate([prompt, answer]), len(answer)
        before = slice(len(prompt) - 1, -1)
        own_mV = distributions(config, params["policy"], tokens_T, TEMPERATURE)[before]
        ref_mV = distributions(config, frozen["reference"], tokens_T, TEMPERATURE)[before]
        chosen = np.arange(n), answer
        heads_H = hidden(SMALL, frozen["rewards"]["proxy"], tokens_T)[-1] @ reward_head["kernel"] + reward_head["bias"]
        expected = {
            "logp_RM": own_mV[chosen],
            "ref_logp_RM": ref_mV[chosen],
            "entropy_RM": -(np.exp(own_mV) * own_mV).sum(-1),
            "kl_exact_RM": (np.exp(own_mV) * (own_mV - ref_mV)).sum(-1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(seen, name)[r, :n], values, rtol=0, atol=5e-5, err_msg=name)
            assert np.all(getattr(seen, name)[r, n:] == 0)
        values_m = slow_values(kind, params, tokens_T)[before]
        np.testing.assert_allclose(seen.values["critic"][r, :n], values_m, rtol=0, atol=5e-5)
        assert seen.scores["proxy"][r] == pytest.approx(heads_H.mean() - 0.5 * heads_H.std(), abs=5e-5)


def test_each_step_draws_other_answers_and_the_same_step_the_same():
    first, second = acted(), acted(step=1)
    params, frozen = params_of("own")
    again = actor("own")({"params": params, "step": jnp.int32(1)}, frozen, BATCH)
    assert np.all(np.any(first.rows.answers_RM != second.rows.answers_RM, axis=1))
    np.testing.assert_array_equal(again.rows.tokens_RT, second.rows.tokens_RT)


@pytest.mark.parametrize("kind", CRITICS)
def test_a_value_knows_what_came_before_its_token_and_not_the_token(kind):
    (params, _), rows, model, t = params_of(kind), acted(kind).rows, policy()[0], 2

    @jax.jit
    def values(tokens_RT):
        changed = jax.tree.map(jnp.asarray, rows)._replace(tokens_RT=tokens_RT)
        states_RMD = ppo.answer_states(model, params["policy"], changed)
        return CRITICS[kind]["critic"].values(params["critic"], changed, states_RMD)

    others_RT = rows.tokens_RT.copy()
    others_RT[:, 16 + t] = (others_RT[:, 16 + t] + 1) % VOCAB
    before, after = np.asarray(values(rows.tokens_RT)), np.asarray(values(others_RT))
    longer = rows.mask_RM[:, t + 1] > 0
    assert longer.sum() > 4
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    assert np.all(np.abs(before[longer, t + 1] - after[longer, t + 1]) > 1e-3)


# Updates --------------------------------------------------------------------------------------------------------------

SEVERAL = dataclasses.replace(HYPER, epochs=2, minibatches=2)


@functools.cache
def learner(kind="own", dtype="float32", hyper=HYPER, accumulate=1, ptx=0.0, critic_first=0):
    """(`learn`, compiled, the function from parameters to the first state). One update of a step moves against its
    gradient, so that what it was can be read off; one of several goes a short way, whatever the gradient's size."""
    optimizer = at_once(
        optax.sgd(1.0) if hyper == HYPER else optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.2))
    )
    loss_fn = ppo.make_loss(policy(dtype)[0], CRITICS[kind], hyper, TEMPERATURE, ptx)
    update = make_update(loss_fn, optimizer, lambda _: 1.0, accumulate=accumulate, guard=Guard(None))
    fixed = (CRITICS[kind], task_of(AS_IS), hyper, PENALTY)
    learn = ppo.make_learn(update, *fixed, seed=0, critic_first=critic_first)

    def first(params):
        extra = {"kl_coef": PENALTY.coef, "score_stats": rewards.FIRST_STATS, "multiplier": 0.0}
        return state_of(params, optimizer, Trainable(), ema=False, extra=extra)

    return jax.jit(learn), first


def scored(seen: ppo.Experience) -> ppo.Experience:
    """An experience with scores at random in the place of the proxy's."""
    return seen._replace(scores={"score": np.random.default_rng(0).normal(size=16).astype(np.float32)})


def moved(kind="own") -> ppo.Experience:
    """One from before policy and critic moved: ratios are off 1, some of them and of the values are clipped."""
    seen, rng = acted(kind), np.random.default_rng(0)
    off = {name: rng.normal(scale=0.3, size=seen.logp_RM.shape).astype(np.float32) for name in ("logp", "values")}
    return scored(
        seen._replace(
            logp_RM=seen.logp_RM + off["logp"] * seen.rows.mask_RM,
            values={"critic": seen.values["critic"] + off["values"]},
        )
    )


def way(seen, kind="own", mix=None, mesh=None, step=0, **options):
    """(how far each parameter goes down, metrics) in `learn` on an experience: its gradient, for one update."""
    learn, first = learner(kind, **options)
    state = first(params_of(kind)[0]) | {"step": jnp.int32(step)}
    begin = jax.device_get(state["params"])
    if mesh is None:
        state, metrics = learn(state, seen, mix or {})
    else:
        where = state_shardings(state, mesh, PARTITION_RULES)
        rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        with jax.set_mesh(mesh):
            state, metrics = learn(jax.device_put(state, where), jax.device_put(seen, rows), {})
    return jax.tree.map(lambda a, b: a - np.asarray(b), begin, state["params"]), jax.device_get(metrics)


def assert_same(found, expected, rtol=2e-4):
    """Each leaf to a share of its largest entry."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-7)


def assert_same_metrics(found, expected, names=None):
    for name in names or expected:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-5), name


@functools.cache
def gradient(kind="own"):
    return way(moved(kind), kind)


def slow_loss(kind, params, seen, advantages, returns):
    """PPO's loss from the definition, token by token, in float64; and the share of tokens whose ratio is clipped."""
    policy_terms, value_terms, entropies, clipped = [], [], [], []
    for r, (prompt, answer) in enumerate(real_tokens(seen.rows)):
        tokens_T = np.concatenate([prompt, answer])
        before = slice(len(prompt) - 1, -1)
        logp_mV = distributions(policy()[0].config, params["policy"], tokens_T, TEMPERATURE)[before]
        values_m = slow_values(kind, params, tokens_T)[before]
        entropies += list(-(np.exp(logp_mV) * logp_mV).sum(-1))
        for t, token in enumerate(answer):
            ratio = np.exp(logp_mV[t, token] - seen.logp_RM[r, t])
            advantage, old, target = advantages[r][t], seen.values["critic"][r, t], returns["critic"][r][t]
            free, held = ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage
            policy_terms.append(-min(free, held))
            clipped.append(held < free)
            kept = old + np.clip(values_m[t] - old, -0.2, 0.2)
            value_terms.append(0.5 * max((values_m[t] - target) ** 2, (kept - target) ** 2))
    loss = np.mean(policy_terms) + 0.5 * np.mean(value_terms) - 0.01 * np.mean(entropies)
    return loss, np.mean(clipped)


@pytest.mark.parametrize("kind", CRITICS)
def test_the_loss_and_the_gradient_of_each_network_are_those_of_the_definition_in_float64(kind):
    seen, (params, _) = moved(kind), params_of(kind)
    advantages, returns, _ = slow_learn(seen, HYPER, PENALTY, AS_IS, PENALTY.coef, np.zeros(0))
    grads, metrics = gradient(kind)
    loss, clipped = slow_loss(kind, params, seen, advantages, returns)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(metrics["policy/clip_fraction"]) == pytest.approx(clipped, abs=1e-6) and 0.1 < clipped < 0.5
    for name in ("policy", "critic"):  # along its gradient the loss rises by the gradient's square
        square = sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(grads[name]))
        step = 1e-5 / np.sqrt(square)
        ahead, behind = (
            jax.tree.map(lambda p, g, s=sign * step: np.float64(p) + s * g, params[name], grads[name])
            for sign in (1, -1)
        )
        losses = [slow_loss(kind, params | {name: there}, seen, advantages, returns)[0] for there in (ahead, behind)]
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(square, rel=1e-3)


def test_the_gradient_does_not_depend_on_the_parts_a_batch_is_walked_through_in():
    grads, metrics = way(moved(), accumulate=4)
    assert_same(grads, gradient()[0])
    assert_same_metrics(metrics, gradient()[1])


def test_the_gradient_does_not_depend_on_padding():
    seen = moved()

    def wider(x, left=0, filler=0):
        return np.pad(x, ((0, 0), (left, 8)), constant_values=filler)

    rows = seen.rows._replace(
        **{name: wider(getattr(seen.rows, name), left=8) for name in ("tokens_RT", "segment_ids_RT", "positions_RT")},
        **{name: wider(getattr(seen.rows, name)) for name in ("mask_RM", "sampling_logprobs_RM")},
    )
    per_token = ("logp_RM", "ref_logp_RM", "entropy_RM", "kl_exact_RM")
    padded = seen._replace(
        rows=rows,
        values={"critic": wider(seen.values["critic"], filler=7)},
        **{name: wider(getattr(seen, name), filler=7) for name in per_token},
    )
    grads, metrics = way(padded)
    assert_same(grads, gradient()[0])
    kept = [name for name in metrics if not name.startswith("sampling/")]  # which takes 0 for granted where masked
    assert_same_metrics(metrics, gradient()[1], kept)


def test_the_gradient_does_not_depend_on_the_order_of_the_batch():
    order = np.random.default_rng(1).permutation(16)
    grads, metrics = way(jax.tree.map(lambda x: x[order], moved()))
    assert_same(grads, gradient()[0])
    assert_same_metrics(metrics, gradient()[1])


def test_two_epochs_of_minibatches_end_alike_on_one_device_and_on_eight():
    axes = dict(data=2, fsdp=2, tensor=2)
    alone, spread = way(moved(), hyper=SEVERAL), way(moved(), hyper=SEVERAL, mesh=make_mesh(axes))
    assert_same(spread[0], alone[0], rtol=1e-3)
    assert_same_metrics(spread[1], alone[1])


def test_in_a_run_s_first_steps_the_critic_may_learn_alone():
    expected = gradient()[0]
    grads, metrics = way(moved(), step=2, critic_first=3)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads["policy"]))
    assert_same(grads["critic"], expected["critic"])
    assert float(metrics["policy/loss"]) == pytest.approx(float(gradient()[1]["policy/loss"]), rel=1e-4)  # still told
    assert_same(way(moved(), step=3, critic_first=3)[0], expected)


def test_text_beside_the_answers_adds_coef_times_its_own_gradient():
    (model, params), rng = policy(), np.random.default_rng(5)
    tokens_BT = rng.integers(1, VOCAB, (16, 21)).astype(np.int32)
    mask_BT = (rng.random((16, 20)) < np.linspace(0.05, 0.9, 16)[:, None]).astype(np.float32)
    mix = {
        "tokens": tokens_BT[:, :-1],
        "targets": tokens_BT[:, 1:],
        "loss_mask": mask_BT,
        "segment_ids": np.ones((16, 20), np.int32),
        "positions": np.tile(np.arange(20, dtype=np.int32), (16, 1)),
    }

    def text_loss(params):
        logp_BTV = jax.nn.log_softmax(model.apply(params, mix["tokens"]))
        chosen_BT = jnp.take_along_axis(logp_BTV, mix["targets"][..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen_BT * mask_BT) / mask_BT.sum()

    nll, text_grads = jax.jit(jax.value_and_grad(text_loss))(params)
    plain = gradient()[0]
    grads, metrics = way(moved(), accumulate=2, ptx=3.0, mix=mix)
    expected = {
        "critic": plain["critic"],
        "policy": jax.tree.map(lambda p, t: p + 3.0 * t, plain["policy"], text_grads),
    }
    assert_same(grads, expected)
    assert float(metrics["ptx/loss"]) == pytest.approx(float(nll), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(gradient()[1]["loss"] + 3.0 * nll), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_of_the_first_minibatch_is_1(dtype):
    learn, first = learner(dtype=dtype, hyper=SEVERAL)
    _, metrics = jax.device_get(learn(first(params_of("own", dtype)[0]), scored(acted(dtype=dtype)), {}))
    largest = metrics["sampling/logprob_difference_max"]
    print(f"{dtype}: first ratio off by {metrics['policy/first_ratio_error']:.3g}, sampling off by {largest:.3g} nats")
    assert metrics["policy/first_ratio_error"] < {"float32": 1e-5, "bfloat16": RATIO_TOLERANCE["bfloat16"]}[dtype]
    assert metrics["policy/ratio_error"] > 0.05  # by later updates: the policy has moved
    assert largest < {"float32": 1e-4, "bfloat16": 0.3}[dtype]
    assert metrics["policy/updates"] == 4


def test_the_reference_stays_what_it_was_while_the_policy_moves_away_from_it():
    (params, frozen), act, (learn, first) = params_of("own"), actor("own"), learner(hyper=SEVERAL)
    frozen = frozen | {"reference": params["policy"]}
    kept, state, told = jax.device_get(params["policy"]), first(params), []
    for _ in range(3):
        state, metrics = learn(state, scored(jax.device_get(act(state, frozen, BATCH))), {})
        told.append(jax.device_get(metrics))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen["reference"]), kept)
    assert all(abs(told[0][f"objective/{name}"]) < 1e-4 for name in ("kl", "kl_k2", "kl_k3", "kl_exact"))
    exact = [float(metrics["objective/kl_exact"]) for metrics in told]
    assert 0.01 < exact[1] < exact[2]
    assert int(state["step"]) == 3
