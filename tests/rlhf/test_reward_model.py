"""A loaded reward model scores answers as its recipe's own evaluation does, on any mesh."""

import jax
import numpy as np
import pytest

import camelid
from camelid.checkpoints import reading
from camelid.data.sources import Source, read
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.model.sharding import make_mesh
from camelid.rlhf.pair_batches import pairs_of
from camelid.rlhf.reward import ComparisonDataSettings, heldout_ranking, pair_scores
from camelid.rlhf.reward_model import RewardModel
from camelid.rlhf.scalar import combine
from camelid.settings import sections


@pytest.fixture(scope="module")
def judge(reward_run):
    return camelid.load_reward(reward_run)


@pytest.fixture(scope="module")
def records(reward_run):
    source = reading.read_manifest(reward_run)["config"]["data"]["mixture"]["pairs"]["source"]
    return list(read(Source(source, heldout=0.1), "heldout"))


@pytest.fixture(scope="module")
def heldout(reward_run, judge):
    """The pass over held-out pairs that the run's evaluation makes."""
    settings = sections.read(reading.read_manifest(reward_run)["config"]["data"], ComparisonDataSettings)
    return pairs_of(settings, judge.tokenizer, judge.template, 0)[1]


def sides(records):
    """Prompts and answers of preference records, the chosen ones and then the rejected ones."""
    answers = [record[side][0]["content"] for side in ("chosen", "rejected") for record in records]
    return [record["messages"] for record in records] * 2, answers


def test_scores_are_those_of_the_recipe_s_own_evaluation(judge, heldout, records, reward_run, metrics):
    found_2N = judge.score(*sides(records)).reshape(2, -1)
    batches, score = heldout["pairs"], jax.jit(lambda params, batch: combine(pair_scores(judge.model, params, batch)))
    expected_NS = np.concatenate([np.asarray(score(judge.params, batches[i])) for i in range(len(batches))])
    expected_NS = expected_NS[: len(records)]
    assert found_2N.dtype == np.float32 and len(records) > 20
    np.testing.assert_allclose(found_2N.T, expected_NS, atol=2e-5)
    where = jax.sharding.NamedSharding(judge.mesh, jax.sharding.PartitionSpec())
    measured = heldout_ranking(judge.model, heldout, where, 16)(judge.params)[0]
    assert np.mean(found_2N[0] - found_2N[1]) == pytest.approx(measured["pairs/gap"], abs=2e-5)
    reported = metrics(reward_run)[12]
    assert np.mean(found_2N[0] > found_2N[1]) == reported["eval/heldout/pairs/accuracy"]


@pytest.mark.parametrize("axes", [{"data": 2}, {"tensor": 2}], ids=str)
def test_scores_are_the_same_on_a_mesh_in_any_order_and_batch_size(judge, records, reward_run, axes):
    prompts, answers = sides(records[:6])
    plain = judge.score(prompts, answers)
    spread = camelid.load_reward(reward_run, mesh=make_mesh(axes, jax.devices()[:2]))
    np.testing.assert_allclose(spread.score(prompts[::-1], answers[::-1], batch_size=6)[::-1], plain, atol=2e-5)


def test_an_empty_answer_is_its_stop_token_and_a_string_one_turn(judge):
    prompt, template, tokenizer = "Which colour has the fox?", judge.template, judge.tokenizer
    begun = template.encode([{"role": "user", "content": prompt}], tokenizer, generation_prompt=True).tokens.tolist()
    (stop,) = {*template.stop_ids(tokenizer)} - {tokenizer.eos_id}
    (empty,) = judge.score([prompt], [""])
    assert empty == judge.score_tokens([[*begun, stop]])[0]
    assert empty != judge.score([prompt], ["It is blue, fox."])[0]


def test_an_ensemble_and_its_adapters_are_loaded_and_pessimism_lowers_their_score(rl_arguments, tuned, tmp_path):
    argv = rl_arguments("reward", tmp_path, init_from=tuned, lora="lora")
    changes = ["--config.heads=3", "--config.total_steps=2", "--config.calibrate.prompts=0"]
    assert main([*argv, *changes]) == 0
    judge = camelid.load_reward(tmp_path)
    pair = ["Which colour has the fox?"], ["It is blue, fox."]
    mean, (low,) = judge.score(*pair), judge.score(*pair, pessimism=2.0)
    assert judge.model.heads == 3 and low < mean[0]
    np.testing.assert_array_equal(camelid.load_reward(tmp_path, dtype="float32").score(*pair), mean)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], []), "0 prompts and 0 answers: give one or more"),
        ((["a", "b"], ["c"]), "2 prompts and 1 answers"),
        (("a", "b"), "give lists"),
        ((["fox " * 300], ["x"]), "answer 1 has .* more than the context of 256"),
    ],
    ids=["none", "unequal", "strings", "long"],
)
def test_lists_that_do_not_fit_are_refused(judge, given, message):
    with pytest.raises(UserError, match=message):
        judge.score(*given)


def test_settings_and_models_that_do_not_fit_are_refused(judge, tuned):
    with pytest.raises(UserError, match="a language model; a reward or cost model comes from the recipe"):
        camelid.load_reward(tuned)
    with pytest.raises(UserError, match="does nothing: the model has one head"):
        judge.score(["a"], ["b"], pessimism=1.0)
    with pytest.raises(UserError, match="batch_size 0"):
        judge.score(["a"], ["b"], batch_size=0)
    bare = RewardModel(judge.model, judge.params, judge.tokenizer, None, judge.mesh)
    with pytest.raises(UserError, match="no template: set `template`"):
        bare.score(["a"], ["b"])
