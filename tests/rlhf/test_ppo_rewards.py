"""What PPO's step makes of an experience, against loops in numpy: no network, an update that writes down what it is
given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf import costs, critic, ppo, rewards
from camelid.tests.rlhf.numpy_ppo import AS_IS, HYPER, PENALTY, SHARED, experience, slow_learn, task_of

COST = costs.Cost(
    rewards.Rewards({}, {"cost": rewards.FunctionReward(None, 1.0)}), costs.CostSettings(threshold=0.3, lr=0.5)
)


def looked_at(seen: ppo.Experience, hyper=HYPER, penalty=PENALTY, shaping=AS_IS, cost=None, **state):
    """(what the update of one minibatch was given, by row; the next state; metrics) of `learn` on an experience."""
    critics = SHARED | ({"cost_critic": critic.Critic("cost_value", None, "")} if cost else {})
    names = ("logp", "advantages", "values", "returns")

    def write_down(state, minibatch):
        rows = minibatch["rows"]
        back = jnp.argsort(rows["rollout"].index_R)
        found = jax.tree.map(lambda x: x[back], {name: rows[name] for name in names})
        metrics = {name: jnp.float32(0) for name in ("loss", "lr", "skipped", "streak", "param_norm")}
        metrics["tokens"] = jnp.float32(1)
        return state | {"given": found}, metrics

    learn = ppo.make_learn(write_down, critics, task_of(shaping, cost), hyper, penalty, seed=0)
    blank = {"logp": seen.logp_RM, "advantages": seen.logp_RM, "values": seen.values, "returns": seen.values}
    state = {"kl_coef": penalty.coef, "score_stats": rewards.FIRST_STATS, "multiplier": 1.0} | state
    state = jax.tree.map(jnp.float32, state) | {"step": jnp.int32(7), "given": jax.tree.map(jnp.asarray, blank)}
    state, metrics = jax.device_get(jax.jit(lambda state, seen: learn(state, seen, {}))(state, seen))
    return state.pop("given"), state, metrics


CASES = {
    "as is": (dict(), dict(), AS_IS),
    "k2, discounted": (dict(gamma=0.9, lam=0.8), dict(estimator="k2"), AS_IS),
    "k3, not whitened": (dict(whiten_advantages=False), dict(estimator="k3"), rewards.Shaping(clip=2.5)),
    "exact, rewards whitened": (
        dict(whiten_rewards=True),
        dict(estimator="exact", controller="adaptive"),
        rewards.Shaping(normalise=True, clip=1.0, missing_eos=-2.0, length_penalty=0.3),
    ),
}


@pytest.mark.parametrize("cost", [False, True], ids=["", "with a cost"])
@pytest.mark.parametrize("case", CASES)
def test_rewards_advantages_and_returns_of_an_experience_are_those_of_loops_over_its_tokens(case, cost):
    changes, changed_penalty, shaping = CASES[case]
    hyper, penalty = dataclasses.replace(HYPER, **changes), dataclasses.replace(PENALTY, **changed_penalty)
    seen = experience(cost=cost)
    past = np.array([4.0, -1.0, 0.5])
    carried = {
        "kl_coef": 0.2,
        "score_stats": {"count": 3.0, "mean": past.mean(), "var": past.var()},
        "multiplier": 1.7,
    }
    given, state, metrics = looked_at(seen, hyper, penalty, shaping, COST if cost else None, **carried)
    advantages, returns, told = slow_learn(seen, hyper, penalty, shaping, 0.2, past, 1.7 if cost else None)
    for r, advantage in enumerate(advantages):
        n = len(advantage)
        np.testing.assert_allclose(given["advantages"][r, :n], advantage, rtol=2e-5, atol=2e-5)
        assert np.all(given["advantages"][r, n:] == 0)
        np.testing.assert_array_equal(given["logp"][r], seen.logp_RM[r])
        for name, rows in returns.items():
            np.testing.assert_allclose(given["returns"][name][r, :n], rows[r], rtol=2e-5, atol=2e-5)
            np.testing.assert_array_equal(given["values"][name][r, :n], seen.values[name][r, :n])

    # What is carried on and told.
    scores = 2.0 * seen.scores["score"]
    history = np.concatenate([past, scores])
    assert state["step"] == 8
    assert float(state["score_stats"]["count"]) == 3 + len(scores)
    assert float(state["score_stats"]["mean"]) == pytest.approx(history.mean(), rel=1e-5)
    assert float(state["score_stats"]["var"]) == pytest.approx(history.var(), rel=1e-5)
    kl = np.mean([np.sum(seen.logp_RM[r] - seen.ref_logp_RM[r]) for r in range(8)])
    error = np.clip(kl / 6.0 - 1.0, -0.2, 0.2)
    coef = 0.2 * (1 + error * 8 / 100.0) if penalty.controller == "adaptive" else 0.2
    assert float(state["kl_coef"]) == pytest.approx(coef, rel=1e-6)
    assert (penalty.controller == "adaptive") == (coef != 0.2)
    assert float(metrics["objective/kl"]) == pytest.approx(kl, rel=1e-5)
    assert float(metrics["objective/kl_coef"]) == float(state["kl_coef"])
    assert float(metrics["objective/scores"]) == pytest.approx(scores.mean(), rel=1e-5)
    assert float(metrics["objective/scores/score"]) == pytest.approx(scores.mean() / 2, rel=1e-5)
    assert float(metrics["objective/rewards"]) == pytest.approx(told, rel=1e-4, abs=1e-5)
    before = np.concatenate([seen.values["critic"][r, : len(a)] for r, a in enumerate(advantages)])
    target = np.concatenate(returns["critic"])
    explained = 1 - np.var(target - before) / np.var(target)
    assert float(metrics["value/explained_variance"]) == pytest.approx(explained, rel=1e-4)
    assert float(state["multiplier"]) == pytest.approx(
        np.clip(1.7 + 0.5 * (seen.scores["cost"].mean() - 0.3), 0, 10) if cost else 1.7, rel=1e-6
    )


def test_without_a_penalty_the_return_of_every_token_is_the_answer_s_score_however_long_it_is():
    hyper = dataclasses.replace(HYPER, lam=1.0, whiten_advantages=False)
    seen = experience()
    given, _, metrics = looked_at(seen, hyper, dataclasses.replace(PENALTY, coef=0.0))
    scores = 2.0 * seen.scores["score"]
    expected_RM = scores[:, None] * seen.rows.mask_RM
    np.testing.assert_allclose(given["returns"]["critic"], expected_RM, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["objective/rewards"], scores.mean(), rtol=1e-5)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="k4"):
        looked_at(experience(), penalty=dataclasses.replace(PENALTY, estimator="k4"))
