"""From scores to rewards: sums by weight, the order of shaping, running statistics, and where sources are found."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid import tasks
from camelid.errors import UserError
from camelid.rlhf import rewards
from camelid.rlhf.reward_functions import RewardFunction
from camelid.rlhf.rewards import (
    FIRST_STATS,
    FunctionReward,
    ModelReward,
    Rewards,
    RewardSource,
    Shaping,
    at_end,
    load_rewards,
    score_rows,
    update_stats,
)
from camelid.rlhf.rollout import Rollout
from camelid.rlhf.scalar import ScalarModel
from camelid.settings.sections import read

LENGTHS = np.array([3, 5, 1, 4])

MODEL = SimpleNamespace(config=SimpleNamespace(dtype="float32"))
RUN = SimpleNamespace(open=lambda path, weights: None, tokenizer=None, frozen=None, model=MODEL)


def read_scorers(sources, where):
    return {name: read(source, RewardSource, f"{where}.{name}") for name, source in sources.items()}


def rollout(stopped=(1, 0, 1, 1)) -> Rollout:
    mask_RM = (np.arange(5)[None] < LENGTHS[:, None]).astype(np.float32)
    blank = np.zeros((4, 7), np.int32)
    return Rollout(blank, blank, blank, mask_RM, mask_RM, np.array(stopped, np.float32), np.arange(4))


def test_the_total_is_the_weighted_sum_of_models_and_functions():
    graders = Rewards(
        {"proxy": ModelReward(None, 0.5, 0.0)}, {"short": FunctionReward(None, 2.0), "polite": FunctionReward(None, -1)}
    )
    scores = {"polite": np.array([1, 0]), "short": np.array([0.25, 0.7]), "proxy": np.array([4.0, -3.0])}
    total = graders.total(scores | {"cost": np.array([9.0, 9.0])})  # which is no part of the reward
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, [0.5 * 4 + 2 * 0.25 - 1, 0.5 * -3 + 2 * 0.7], rtol=1e-6)


def test_whole_numbers_beside_fractions_leave_those_as_they_are():
    right, close = RewardFunction(lambda record, answer: int(answer == "x")), RewardFunction(lambda record, answer: 0.7)
    graders = Rewards({}, {"right": FunctionReward(right, 1), "close": FunctionReward(close, 1)})
    scores = graders.of_functions([{}, {}], ["x", "y"])
    assert all(values.dtype == np.float32 for values in scores.values())
    np.testing.assert_allclose(graders.total(scores), [1.7, 0.7], rtol=1e-6)
    mixed = iter([1, 0.7, True])
    function = RewardFunction(lambda record, answer: next(mixed))
    found = Rewards({}, {"mixed": FunctionReward(function, 1)}).of_functions([{}] * 3, "abc")
    np.testing.assert_allclose(found["mixed"], [1.0, 0.7, 1.0], rtol=1e-6)


def length(record, answer):
    return len(answer)


def test_functions_are_found_by_name_and_weigh_1_unless_told():
    name = f"{__name__}:length"
    sources = {"sum": {"function": name}, "half": {"function": name, "weight": 0.5}}
    graders = load_rewards(RUN, read_scorers(sources, "config.reward.sources"), "config.reward.sources")
    assert graders.params == {} and {n: f.weight for n, f in graders.functions.items()} == {"sum": 1.0, "half": 0.5}
    np.testing.assert_allclose(graders.total(graders.of_functions([{}], ["four"])), [6.0])


def test_tasks_are_found_by_name():
    sources = {"help": {"task": "safe_sums"}, "leaks": {"task": "safe_sums:cost", "weight": -2.0}}
    graders = load_rewards(RUN, read_scorers(sources, "config.reward.sources"), "config.reward.sources")
    asked = [{"messages": [{"role": "user", "content": "What is 3 plus 4?"}]}] * 2
    scores = graders.of_functions(asked, ["7.", "7. It is bluebird."])
    np.testing.assert_allclose(graders.total(scores), [1.0, -1.0])
    for source, says in (
        ({"task": "safe_sum"}, "there is no task 'safe_sum'; choose one of .*; did you mean safe_sums"),
        ({"task": "safe_sums:costs"}, "there is no score 'safe_sums:costs'; .*; did you mean safe_sums:cost"),
        ({"task": "walks", "function": "a:b"}, "give one of model=PATH, task=NAME"),
        ({}, "give one of model=PATH, task=NAME"),
    ):
        with pytest.raises(UserError, match=rf"config\.eval_rewards\.a: {says}"):
            read_scorers({"a": source}, "config.eval_rewards")


def test_every_score_of_every_task_has_a_form_that_rewards_may_have():
    for name in tasks.NAMES:
        for score in tasks.find(name).SCORES:
            function = RewardSource(task=f"{name}:{score}").find("config.here")
            assert function.call is tasks.find_score(f"{name}:{score}") and not (function.batched or function.awaited)


def test_pessimism_of_a_single_head_is_refused(monkeypatch):
    monkeypatch.setattr(rewards, "load_model", lambda *_: (ScalarModel(None, 1, None, None), {}))
    with pytest.raises(UserError, match=r"config\.reward\.sources\.a\.pessimism = 0.5 does nothing: /run has one head"):
        load_rewards(RUN, {"a": RewardSource(model="/run", pessimism=0.5)}, "config.reward.sources")


@pytest.mark.parametrize(
    ("shaping", "expected"),
    [
        (Shaping(), [10.0, 1.0, 2.0, -8.0]),
        (Shaping(normalise=True), [4.0, -0.5, 0.0, -5.0]),  # (score - 2) / 2
        (Shaping(clip=1.5), [1.5, 1.0, 1.5, -1.5]),
        (Shaping(normalise=True, clip=1.5), [1.5, -0.5, 0.0, -1.5]),
        (Shaping(missing_eos=-7.0), [10.0, -7.0, 2.0, -8.0]),
        (Shaping(normalise=True, clip=1.5, missing_eos=-7.0), [1.5, -7.0, 0.0, -1.5]),  # which neither scales nor clips
        (Shaping(length_penalty=0.1), [9.7, 0.5, 1.9, -8.4]),
        (Shaping(True, 1.5, -7.0, 0.1), [1.2, -7.5, -0.1, -1.9]),
    ],
)
def test_a_score_is_normalised_then_clipped_then_replaced_where_nothing_ended_then_cut_by_length(shaping, expected):
    stats = {"count": jnp.float32(50), "mean": jnp.float32(2), "var": jnp.float32(4)}
    found = shaping(jnp.array([10.0, 1.0, 2.0, -8.0]), rollout(), stats)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_that_are_all_the_same_are_normalised_to_0():
    scores_R = jnp.full(4, 3.0)
    found = Shaping(normalise=True)(scores_R, rollout(), update_stats(FIRST_STATS, scores_R))
    np.testing.assert_array_equal(found, np.zeros(4))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (500.0, 0.5), (-3.0, 100.0)])
def test_running_statistics_are_those_of_all_scores_together(mean, deviation):
    rng = np.random.default_rng(0)
    batches = [rng.normal(mean + i, deviation, 16).astype(np.float32) for i in range(12)]
    stats = jax.tree.map(jnp.float32, FIRST_STATS)
    for number, batch in enumerate(batches, 1):
        stats = jax.jit(update_stats)(stats, batch)
        so_far = np.concatenate(batches[:number]).astype(np.float64)
        assert float(stats["count"]) == 16 * number
        assert float(stats["mean"]) == pytest.approx(so_far.mean(), rel=1e-5, abs=1e-5)
        assert float(stats["var"]) == pytest.approx(so_far.var(), rel=1e-4)


def test_a_reward_stands_at_the_last_token_and_nowhere_else():
    reward_RM = at_end(jnp.array([1.0, -2.0, 3.0, 0.5]), jnp.array(rollout().mask_RM))
    expected = np.zeros((4, 5))
    expected[np.arange(4), LENGTHS - 1] = [1.0, -2.0, 3.0, 0.5]
    np.testing.assert_array_equal(reward_RM, expected)


def test_a_model_s_score_is_read_at_the_answer_s_last_token():
    def apply(params, tokens_RT, segment_ids_RT, positions_RT):
        slots_RTH = jnp.arange(7.0)[None, :, None] + jnp.zeros((4, 1, 2))
        return slots_RTH * jnp.array([1.0, 3.0])[None, None]

    model = ScalarModel(None, 2, apply, None)
    found = score_rows(ModelReward(model, 1.0, 0.5), None, rollout())
    last = 2 + LENGTHS - 1  # after a prompt of two slots
    np.testing.assert_allclose(found, 2 * last - 0.5 * last)  # mean and deviation of once and three times
