"""Losses of 30 steps of the recipes against those in the repository (`make_loss_goldens.py` says how to renew them)."""

import copy
import math

import pytest

from camelid.tests import make_loss_goldens as goldens

pytestmark = pytest.mark.usefixtures("one_device")

HERE = ("pretrain", "sft", "lora", "reward", "dpo", "ppo", "grpo", "raft")
"""The goldens that the suite compares; `python -m camelid.tests.make_loss_goldens` compares all."""

LIMIT = goldens.TOLERANCE["train/loss"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    goldens.write_data(root)
    return root


@pytest.mark.parametrize("name", HERE)
def test_thirty_steps_have_the_losses_of_the_golden(name, data):
    found = goldens.series(goldens.train(name, data))
    assert goldens.complaints(found, goldens.golden_of(name)) == []


def test_every_golden_is_of_a_recipe_has_thirty_steps_and_says_what_it_was_made_with():
    assert {path.stem for path in goldens.LOSSES.iterdir()} == set(goldens.RECIPES)
    for name in goldens.RECIPES:
        golden = goldens.golden_of(name)
        assert {len(values) for values in golden.values()} == {goldens.STEPS}
        assert set(golden) == {*goldens.TOLERANCE, *(goldens.DRAWN if name in goldens.SAMPLES else ())}
        assert all(math.isfinite(x) for values in golden.values() for x in values)


def changed(golden, name, step, by):
    other = copy.deepcopy(golden)
    for at in range(step - 1, goldens.STEPS):
        other[name][at] += by
    return other


def test_a_loss_that_moves_by_more_than_rounding_is_found_at_its_step():
    golden = goldens.golden_of("sft")
    assert goldens.complaints(changed(golden, "train/loss", 7, LIMIT / 2), golden) == []
    [said] = goldens.complaints(changed(golden, "train/loss", 7, LIMIT * 2), golden)
    assert said.startswith("train/loss of step 7 is ")
    [said] = goldens.complaints(changed(golden, "train/loss", 30, math.nan), golden)
    assert said.startswith("train/loss of step 30 is nan")
    assert goldens.complaints({"train/loss": golden["train/loss"][:20]}, golden) == ["20 steps instead of 30"]


def test_answers_that_a_rounding_flips_may_differ_late_but_not_early_nor_in_what_they_score():
    golden = goldens.golden_of("grpo")
    late = changed(golden, "train/tokens", goldens.SAME_ANSWERS + 1, 1.0)
    assert goldens.complaints(changed(late, "train/loss", goldens.SAME_ANSWERS + 1, 1.0), golden) == []
    [said] = goldens.complaints(changed(late, "train/loss", goldens.SAME_ANSWERS, 1.0), golden)
    assert said.startswith(f"train/loss of step {goldens.SAME_ANSWERS} is ")
    [said] = goldens.complaints(changed(golden, "train/tokens", goldens.SAME_ANSWERS, 1.0), golden)
    assert said == f"other answers are drawn from step {goldens.SAME_ANSWERS} on"
    [said] = goldens.complaints(changed(golden, "objective/scores", goldens.SAME_ANSWERS + 1, 0.5), golden)
    assert said.startswith("the mean score is ")
