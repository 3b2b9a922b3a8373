"""GRPO and its relatives: what an update is given of an experience, and the loss, against loops over answers.

The network here is a table: the next token's logits are those of the token before it.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf import grpo, raft, rewards
from camelid.tests.rlhf.numpy_llama import softmax
from camelid.tests.rlhf.numpy_ppo import AS_IS, experience, task_of

HYPER = grpo.GRPOSettings(
    advantage="grpo",
    epochs=1,
    minibatches=1,
    clip=0.2,
    clip_high=None,
    aggregate="sequence",
    kl_coef=0.04,
    kl_estimator="k3",
    kl_in="loss",
    drop_equal_groups=False,
    overlong=0,
    target_kl=None,
)
EVEN = 2  # of the groups of four answers, the one whose answers score the same


def scored():
    """Three groups of four answers, one of them even."""
    seen = experience(lengths=(6, 1, 4, 6, 2, 3, 5, 6, 3, 3, 3, 3))
    score_R = seen.scores["score"].copy()
    score_R[4 * EVEN :] = 0.5
    return seen._replace(scores={"score": score_R})


def looked_at(hyper, shaping=AS_IS):
    """What the update of one minibatch was given, by row, and the step's metrics."""
    seen = scored()

    def write_down(state, minibatch):
        rows = minibatch["rows"]
        back = jnp.argsort(rows["rollout"].index_R)
        found = {name: rows[name][back] for name in ("mask", "logp", "ref_logp", "advantage")}
        metrics = {name: jnp.float32(0) for name in ("loss", "lr", "skipped", "streak", "param_norm")}
        metrics["tokens"] = jnp.float32(1)
        return state | {"given": found}, metrics

    learn = grpo.make_learn(write_down, task_of(shaping, n=4), hyper, seed=0)
    blank = dict.fromkeys(("mask", "logp", "ref_logp"), seen.logp_RM) | {"advantage": seen.scores["score"]}
    state = {"score_stats": rewards.FIRST_STATS, "step": jnp.int32(3), "given": blank}
    state, metrics = jax.device_get(jax.jit(lambda state, seen: learn(state, seen, {}))(state, seen))
    assert state["step"] == 4 and state["score_stats"]["count"] == 12
    return seen, state["given"], metrics


def slow_advantages(seen, hyper, shaping):
    """The advantage of each answer, group by group."""
    shaped = []
    for r, score in enumerate(2.0 * seen.scores["score"].astype(np.float64)):
        n = int(seen.rows.mask_RM[r].sum())
        if shaping.missing_eos is not None and not seen.rows.stopped_R[r]:
            score = shaping.missing_eos
        if hyper.overlong:  # six tokens is all there is
            score -= min(max((n - (6 - hyper.overlong)) / hyper.overlong, 0.0), 1.0)
        if hyper.kl_in == "reward":
            d = np.float64(seen.logp_RM[r, :n]) - seen.ref_logp_RM[r, :n]
            score -= hyper.kl_coef * {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[hyper.kl_estimator].sum()
        shaped.append(score - shaping.length_penalty * n)
    advantages = []
    for group in np.reshape(shaped, (-1, 4)):
        for i, score in enumerate(group):
            others = np.delete(group, i)
            of_kind = {
                "grpo": (score - group.mean()) / (group.std(ddof=1) + 1e-4),
                "dr_grpo": score - group.mean(),
                "rloo": score - others.mean(),
            }
            advantages.append(of_kind[hyper.advantage])
    return np.array(advantages), np.array(shaped)


@pytest.mark.parametrize(
    ("changes", "shaping"),
    [
        (dict(), AS_IS),
        (dict(advantage="dr_grpo", overlong=3), AS_IS),
        (dict(advantage="rloo", kl_in="reward", kl_estimator="k1", kl_coef=0.2), AS_IS),
        (dict(kl_in="reward", kl_estimator="k2"), rewards.Shaping(missing_eos=-1.5)),
        (dict(drop_equal_groups=True), AS_IS),
        (dict(drop_equal_groups=True, overlong=5, kl_in="reward"), rewards.Shaping(length_penalty=0.3)),
    ],
    ids=str,
)
def test_the_advantage_of_an_answer_is_over_the_others_to_its_prompt(changes, shaping):
    hyper = dataclasses.replace(HYPER, **changes)
    seen, given, metrics = looked_at(hyper, shaping)
    expected, shaped = slow_advantages(seen, hyper, shaping)
    np.testing.assert_allclose(given["advantage"], expected, rtol=1e-3, atol=1e-4)
    assert float(metrics["objective/rewards"]) == pytest.approx(shaped.mean(), rel=1e-4)
    assert float(metrics["objective/scores"]) == pytest.approx(2.0 * seen.scores["score"].mean(), rel=1e-5)
    even = [np.ptp(group) == 0 for group in seen.scores["score"].reshape(-1, 4)]  # whatever shaping and penalty do
    assert sum(even) == 1
    assert float(metrics["objective/even_groups"]) == pytest.approx(np.mean(even))
    dropped_R = np.repeat(even, 4) & hyper.drop_equal_groups
    assert dropped_R.sum() == (4 if hyper.drop_equal_groups else 0)
    np.testing.assert_array_equal(given["mask"], seen.rows.mask_RM * ~dropped_R[:, None])
    np.testing.assert_array_equal(given["logp"], seen.logp_RM)
    np.testing.assert_array_equal(given["ref_logp"], seen.ref_logp_RM)


# The loss of a minibatch


def table_model(seed=0):
    """A network whose logits are a function of the token before, and parameters as the policy's lie in a state."""
    model = SimpleNamespace(hidden=lambda params, tokens, segment_ids, positions: params["embed"]["embedding"][tokens])
    rng = np.random.default_rng(seed)
    params = {
        "embed": {"embedding": rng.normal(size=(9, 4)).astype(np.float32)},
        "head": {"kernel": rng.normal(size=(4, 9)).astype(np.float32)},
    }
    return model, params


def slow_logp(params, seen, temperature):
    """The table's log-probability of each answer's tokens, by row."""
    logp_VV = np.log(softmax(np.float64(params["embed"]["embedding"]) @ params["head"]["kernel"] / temperature))
    tokens_RT, M = seen.rows.tokens_RT, seen.rows.mask_RM.shape[1]
    return [
        np.array([logp_VV[row[-M - 1 + t], row[-M + t]] for t in range(int(mask.sum()))])
        for row, mask in zip(tokens_RT, seen.rows.mask_RM, strict=True)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(aggregate="token", clip_high=0.5, kl_estimator="k2"),
        dict(aggregate="constant", kl_coef=0.0),
        dict(aggregate="token", kl_in="reward"),
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dropped", [(), (4, 5, 6, 7)])
def test_the_loss_is_the_definition_s_of_the_rows_that_stay_and_its_parts_add_up(changes, parts, dropped):
    hyper, temperature = dataclasses.replace(HYPER, **changes), 0.7
    model, params = table_model()
    seen, rng = scored(), np.random.default_rng(1)
    logps = slow_logp(params, seen, temperature)
    M = seen.rows.mask_RM.shape[1]

    def padded(rows):
        return np.array([np.pad(row, (0, M - len(row)), constant_values=9.0) for row in rows], np.float32)

    old = [logp + rng.normal(scale=0.3, size=len(logp)) for logp in logps]
    ref = [logp + rng.normal(scale=0.3, size=len(logp)) for logp in logps]
    advantage_R = rng.normal(size=12).astype(np.float32)
    stay_R = ~np.isin(np.arange(12), dropped)
    batch = {
        "rollout": seen.rows,
        "mask": seen.rows.mask_RM * stay_R[:, None],
        "logp": padded(old),
        "ref_logp": padded(ref),
        "advantage": advantage_R,
    }
    loss_fn = jax.jit(grpo.make_loss(model, hyper, temperature))
    found = [
        loss_fn({"policy": params}, {"rows": jax.tree.map(lambda x, p=part: x[p::parts], batch)})
        for part in range(parts)
    ]
    loss, weight = (float(sum(part[i] for part in found)) for i in (0, 1))

    terms = []
    high = 1.2 if hyper.clip_high is None else 1.0 + hyper.clip_high
    for logp, before, reference, advantage in zip(logps, old, ref, advantage_R, strict=True):
        ratio, d = np.exp(logp - before), logp - reference
        penalty = {"k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[hyper.kl_estimator]
        coef = hyper.kl_coef if hyper.kl_in == "loss" else 0.0
        terms.append(-np.minimum(ratio * advantage, np.clip(ratio, 0.8, high) * advantage) + coef * penalty)
    terms = [row for row, stays in zip(terms, stay_R, strict=True) if stays]
    expected = {
        "sequence": np.mean([row.mean() for row in terms]),
        "token": np.concatenate(terms).mean(),
        "constant": np.concatenate(terms).sum() / (len(terms) * M),
    }[hyper.aggregate]
    assert loss / weight == pytest.approx(expected, rel=1e-4)


def test_a_batch_of_even_groups_alone_moves_nothing():
    model, params = table_model()
    seen = scored()
    batch = {
        "rollout": seen.rows,
        "mask": np.zeros_like(seen.rows.mask_RM),
        "logp": seen.logp_RM,
        "ref_logp": seen.ref_logp_RM,
        "advantage": np.ones(12, np.float32),
    }
    for aggregate in ("token", "sequence", "constant"):
        loss_fn = grpo.make_loss(model, dataclasses.replace(HYPER, aggregate=aggregate), 1.0)
        grads = jax.jit(jax.grad(lambda params, f=loss_fn: f({"policy": params}, {"rows": batch})[0]))(params)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_answers_fall_in_worth_towards_the_longest_that_there_may_be():
    lengths = np.array([1, 8, 9, 10, 12])
    found = grpo.shape_overlong(jnp.ones(5), lengths, 4, 12)
    np.testing.assert_allclose(found, [1.0, 1.0, 0.75, 0.5, 0.0])
    np.testing.assert_array_equal(grpo.shape_overlong(jnp.ones(5), lengths, 0, 12), np.ones(5))


# RAFT


def test_raft_tunes_on_the_best_answer_to_each_prompt():
    seen = scored()

    def write_down(state, minibatch):
        rows = minibatch["rows"]["rollout"]
        metrics = {name: jnp.float32(0) for name in ("loss", "lr", "skipped", "streak", "param_norm")}
        metrics["tokens"] = jnp.float32(1)
        return state | {"given": jnp.sort(rows.index_R)}, metrics

    learn = raft.make_learn(
        write_down, task_of(rewards.Shaping(missing_eos=-99.0), n=4), raft.RAFTSettings(1, 1), seed=0
    )
    state = {"score_stats": rewards.FIRST_STATS, "step": jnp.int32(0), "given": jnp.zeros(3, jnp.int32)}
    state, metrics = jax.jit(lambda state, seen: learn(state, seen, {}))(state, seen)
    scores = np.where(seen.rows.stopped_R > 0, 2.0 * seen.scores["score"], -99.0)
    best = [group * 4 + int(np.argmax(scores[group * 4 : group * 4 + 4])) for group in range(3)]
    np.testing.assert_array_equal(state["given"], best)
    assert float(metrics["objective/scores_of_best"]) == pytest.approx(scores[best].mean(), rel=1e-5)


def test_raft_s_loss_is_the_mean_over_the_kept_answers_tokens_at_temperature_1():
    model, params = table_model()
    seen = scored()
    loss, tokens, _ = raft.make_loss(model)({"policy": params}, {"rows": {"rollout": seen.rows}})
    expected = -np.concatenate(slow_logp(params, seen, 1.0))
    assert float(tokens) == len(expected)
    assert float(loss / tokens) == pytest.approx(expected.mean(), rel=1e-5)
