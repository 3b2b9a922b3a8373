"""What stops a run, and what does not."""

import dataclasses
import json
import math

import pytest

from camelid.errors import UserError
from camelid.evals.registry import Evaluations
from camelid.rlhf.watch import RATIO_TOLERANCE, Watch, WatchSettings, check_names, evaluation_names, heldout_names
from camelid.train.evaluations import Chosen
from camelid.train.loop import TrainingStopped

PROXY, GOLD = "eval/heldout/scores", "eval/primer/all"
LIMITS = WatchSettings(
    ratio_tolerance=None, min_eos_rate=0.1, patience=3, proxy=PROXY, gold=GOLD, patience_evaluations=3
)
FINE = {"loss": 0.5, "grad_norm": 1.0, "streak": 0.0, "policy/first_ratio_error": 1e-6, "tokens/eos_rate": 0.9}


@pytest.fixture
def watch():
    """watch(dtype, **limits): what watches a run."""

    def make(dtype="float32", max_streak=2, **limits) -> Watch:
        return Watch(dataclasses.replace(LIMITS, **limits), dtype, max_streak)

    return make


def test_a_sound_step_passes(watch):
    check = watch()
    for step in range(10):
        check(step, FINE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "objective/kl", "eval/heldout/scores"])
def test_a_number_that_is_not_finite_stops_the_run_by_its_name(name, value, watch):
    with pytest.raises(TrainingStopped, match=f"step 7: {name} not finite"):
        watch()(7, FINE | {name: value})


def test_skipped_steps_in_a_row_stop_the_run(watch):
    check = watch(max_streak=2)
    check(0, FINE | {"streak": 1.0})
    with pytest.raises(TrainingStopped, match="2 steps in a row were skipped"):
        check(1, FINE | {"streak": 2.0})


@pytest.mark.parametrize(
    ("dtype", "own", "passes", "stops"),
    [("float32", None, 0.9e-4, 1.1e-4), ("bfloat16", None, 1.9e-2, 2.1e-2), ("float32", 0.5, 0.4, 0.6)],
)
def test_a_first_ratio_off_1_by_more_than_rounding_stops_the_run(dtype, own, passes, stops, watch):
    assert RATIO_TOLERANCE == {"float32": 1e-4, "bfloat16": 2e-2}
    check = watch(dtype, ratio_tolerance=own)
    check(0, FINE | {"policy/first_ratio_error": passes})
    with pytest.raises(TrainingStopped, match="step 1: the first minibatch's ratio is off 1 by"):
        check(1, FINE | {"policy/first_ratio_error": stops})


def test_answers_that_do_not_end_for_several_steps_in_a_row_stop_the_run(watch):
    check = watch(patience=3)
    endless, ended = FINE | {"tokens/eos_rate": 0.09}, FINE | {"tokens/eos_rate": 0.1}
    for step, metrics in enumerate([endless, endless, ended, endless, endless]):
        check(step, metrics)
    check(5, {"eval/heldout/length": 3.0})  # an evaluation says nothing of it
    with pytest.raises(TrainingStopped, match=r"step 6: for 3 steps fewer than 10% of answers ended"):
        check(6, endless)


def evaluations(check, pairs, first=10):
    for number, (proxy, gold) in enumerate(pairs):
        check(first + 10 * number, {PROXY: proxy, GOLD: gold})


def test_a_proxy_that_rises_while_gold_falls_three_times_in_a_row_stops_the_run(watch):
    with pytest.raises(TrainingStopped, match=f"step 50: in 3 evaluations in a row {PROXY} rose while {GOLD} fell"):
        evaluations(watch(), [(0.0, 0.5), (0.1, 0.6), (0.2, 0.5), (0.3, 0.4), (0.4, 0.3)])


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.0, 0.9), (0.1, 0.8), (0.2, 0.7)],  # not yet
        [(0.0, 0.9), (0.1, 0.8), (0.2, 0.8), (0.3, 0.7), (0.4, 0.6)],  # gold held in between
        [(0.0, 0.9), (0.1, 0.8), (0.1, 0.7), (0.3, 0.6), (0.4, 0.5)],  # the proxy did
        [(0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.6, 0.6)],  # both fall
        [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.4, 0.4)],  # both rise
    ],
)
def test_anything_else_does_not(pairs, watch):
    evaluations(watch(), pairs)


def test_what_is_not_named_is_not_watched(watch):
    falling = [(0.1 * n, -0.1 * n) for n in range(6)]
    evaluations(watch(proxy=None, gold=None), falling)
    evaluations(watch(gold=None), falling)


def test_a_resumed_run_goes_on_with_the_counters_of_its_checkpoint(watch):
    first = watch(patience=3)
    evaluations(first, [(0.0, 0.9), (0.1, 0.8), (0.2, 0.7)], first=10)
    for step in (38, 39):
        first(step, FINE | {"tokens/eos_rate": 0.09})
    saved = json.loads(json.dumps(first.counters))
    resumed = watch(patience=3)
    resumed.restore(saved)
    with pytest.raises(TrainingStopped, match="step 40: for 3 steps fewer than"):
        resumed(40, FINE | {"tokens/eos_rate": 0.09})
    with pytest.raises(TrainingStopped, match="step 40: in 3 evaluations in a row"):
        resumed(40, {PROXY: 0.3, GOLD: 0.6})
    watch(patience=3)(40, {PROXY: 0.3, GOLD: 0.6})


def limits(proxy, gold):
    return WatchSettings(None, 0.02, 20, proxy, gold, 3)


def test_metrics_to_watch_are_those_that_evaluations_give():
    names = heldout_names(["proxy", "gold"], ["en", "zh"])
    names += evaluation_names([Chosen("primer", Evaluations()["primer"], {}, None), Chosen("own", print, {}, None)])
    for name in (
        "heldout/scores",
        "heldout/kl",
        "heldout/scores/gold",
        "heldout/scores/gold/zh",
        "primer/all",
        "own/any",
    ):
        check_names(limits(f"eval/{name}", "eval/heldout/scores"), "config.watch", names)
    check_names(limits(None, None), "config.watch", [])
    for name in ("heldout/score", "heldout/scores/gld", "heldout/scores/gold/de", "primer/every", "primr/all"):
        with pytest.raises(UserError, match=f"config.watch.gold = 'eval/{name}': no evaluation gives such a metric"):
            check_names(limits("eval/heldout/scores", f"eval/{name}"), "config.watch", names)
    assert "eval/heldout/scores/gold/en" not in heldout_names(["gold"], ["en"])  # which is all
