"""From scores to rewards: sums by weight, the order of shaping, running statistics, and functions that misbehave."""

import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.errors import UserError
from camelid.rlhf import rewards
from camelid.rlhf.rewards import (
    FIRST_STATS,
    FunctionReward,
    ModelReward,
    Rewards,
    RewardSource,
    Shaping,
    at_end,
    find_function,
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
    graders = Rewards(
        {}, {"right": FunctionReward(lambda r, a: int(a == r), 1), "close": FunctionReward(lambda r, a: 0.7, 1)}
    )
    scores = graders.of_functions(["x", "y"], ["x", "x"])
    assert all(values.dtype == np.float32 for values in scores.values())
    np.testing.assert_allclose(graders.total(scores), [1.7, 0.7], rtol=1e-6)
    mixed = iter([1, 0.7, True])
    found = Rewards({}, {"mixed": FunctionReward(lambda r, a: next(mixed), 1)}).of_functions("abc", "abc")
    np.testing.assert_allclose(found["mixed"], [1.0, 0.7, 1.0], rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None, "0.7", 1e39, [], {}])
def test_a_function_that_gives_no_finite_number_stops_with_the_answer(bad):
    graders = Rewards({}, {"odd": FunctionReward(lambda record, answer: bad if answer == "no" else 1, 1.0)})
    with pytest.raises(
        UserError, match=f"reward odd: gave {re.escape(repr(bad))} for answer 'no'; it must be a finite number"
    ):
        graders.of_functions([{}, {}], ["yes", "no"])


def test_a_function_sees_the_record_and_the_text_in_that_order():
    seen = []
    graders = Rewards({}, {"f": FunctionReward(lambda record, answer: seen.append((record, answer)) or 0.0, 1.0)})
    graders.of_functions([{"reference": "a"}, {"reference": "b"}], ["x", "y"])
    assert seen == [({"reference": "a"}, "x"), ({"reference": "b"}, "y")]


def test_what_a_function_writes_into_a_record_is_gone_for_the_next_answer():
    def grader(record, answer):
        record["messages"].append(answer)
        return len(record["messages"])

    record = {"messages": ["question"]}
    graders = Rewards({}, {"f": FunctionReward(grader, 1.0)})
    assert graders.of_functions([record] * 3, ["a", "b", "c"])["f"].tolist() == [2.0, 2.0, 2.0]
    assert record == {"messages": ["question"]}


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_function_that_exits_is_a_mistake_and_no_end(code):
    graders = Rewards({}, {"f": FunctionReward(lambda record, answer: sys.exit(code), 1.0)})
    with pytest.raises(UserError, match=f"reward f: SystemExit: {code} .*for answer 'no'"):
        graders.of_functions([{}], ["no"])


def test_functions_are_found_by_name_and_weigh_1_unless_told():
    sources = {"sum": {"function": "math:hypot"}, "half": {"function": "math:hypot", "weight": 0.5}}
    graders = load_rewards(RUN, read_scorers(sources, "config.reward.sources"), "config.reward.sources")
    assert graders.params == {} and {n: f.weight for n, f in graders.functions.items()} == {"sum": 1.0, "half": 0.5}
    np.testing.assert_allclose(graders.total(graders.of_functions([3], [4])), [7.5])
    for name in ("math:hypo", "no_such_module:f", "math", "", ":", "math:", ".math:hypot"):
        with pytest.raises(UserError, match=r"config\.here: .* is no function as package\.module:name"):
            find_function(name, "config.here")
    for name in ("math:pi", "json:loads", "dataclasses:dataclass"):
        with pytest.raises(UserError, match=r"config\.here: .* cannot be called as reward\(record, answer\)"):
            find_function(name, "config.here")


def test_tasks_are_found_by_name():
    sources = {"help": {"task": "safe_sums"}, "leaks": {"task": "safe_sums:cost", "weight": -2.0}}
    graders = load_rewards(RUN, read_scorers(sources, "config.reward.sources"), "config.reward.sources")
    asked = [{"messages": [{"role": "user", "content": "What is 3 plus 4?"}]}] * 2
    scores = graders.of_functions(asked, ["7.", "7. It is bluebird."])
    np.testing.assert_allclose(graders.total(scores), [1.0, -1.0])
    for source, says in (
        ({"task": "safe_sum"}, "there is no task 'safe_sum'; choose one of .*; did you mean safe_sums"),
        ({"task": "safe_sums:costs"}, "there is no score 'safe_sums:costs'; .*; did you mean safe_sums:cost"),
        ({"task": "walks", "function": "math:hypot"}, "give one of model=PATH, task=NAME"),
        ({}, "give one of model=PATH, task=NAME"),
    ):
        with pytest.raises(UserError, match=rf"config\.eval_rewards\.a: {says}"):
            read_scorers({"a": source}, "config.eval_rewards")


def test_pessimism_of_a_single_head_is_refused(monkeypatch):
    monkeypatch.setattr(rewards, "load_model", lambda *_: (ScalarModel(None, 1, None, None), {}))
    with pytest.raises(UserError, match=r"config\.reward\.sources\.a\.pessimism = 0.5 does nothing: /run has one head"):
        load_rewards(RUN, {"a": RewardSource(model="/run", pessimism=0.5)}, "config.reward.sources")


def test_what_a_users_function_or_module_raises_is_told_with_its_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_broken.py").write_text("x = 1\nraise RuntimeError('half\\nwritten')\n")
    (tmp_path / "mine_spelt.py").write_text("def reward(record, answer)\n    return 1\n")
    with pytest.raises(UserError, match=r"no function .* \(RuntimeError: half written \(.*mine_broken\.py, line 2\)\)"):
        find_function("mine_broken:reward", "config.here")
    with pytest.raises(UserError, match=r"no function .* \(SyntaxError: .*mine_spelt\.py, line 1"):
        find_function("mine_spelt:reward", "config.here")
    (tmp_path / "mine_fragile.py").write_text("\ndef reward(record, answer):\n    return record['gold'] == answer\n")
    graders = Rewards({}, {"mine": FunctionReward(find_function("mine_fragile:reward", "config.here"), 1.0)})
    assert graders.of_functions([{"gold": "a"}], ["a"])["mine"] == [1.0]
    with pytest.raises(UserError, match=r"reward mine: KeyError: 'gold' \(.*mine_fragile\.py, line 3\) for answer 'b'"):
        graders.of_functions([{}], ["b"])


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
