"""Early stopping: when a run ends, and that its count outlives a kill."""

import json

import pytest

from camelid.errors import UserError
from camelid.settings.sections import read, to_config
from camelid.train.stopping import EarlyStopping, StoppingSettings

LOSS = "eval/heldout/text/loss"


def stops_at(values, stopping=None, **settings):
    """The number of the evaluation that ends a run, from 0; None for none."""
    stopping = stopping or EarlyStopping(StoppingSettings(LOSS, **settings))
    return next((i for i, value in enumerate(values) if stopping.see(10 * i, {LOSS: value})), None)


@pytest.mark.parametrize(
    ("values", "settings", "end"),
    [
        ([5.0, 4.0, 4.5, 4.1, 4.0], dict(patience=3), 4),  # an equal value is no improvement
        ([5.0, 4.0, 4.5, 4.1, 3.9, 4.0, 4.0], dict(patience=3), None),
        ([5.0, 6.0], dict(patience=1), 1),
        ([5.0, 4.95, 4.9, 4.85], dict(patience=2, min_delta=0.1), 2),
        ([5.0, 4.95, 4.85, 4.84, 4.8], dict(patience=2, min_delta=0.1), 4),  # compared with the best, not the last
        ([0.1, 0.2, 0.3, 0.2, 0.1], dict(patience=2, mode="max"), 4),
        ([float("nan"), 5.0, float("nan"), float("inf")], dict(patience=2), 3),
        ([float("nan"), float("nan")], dict(patience=2), 1),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_an_improvement(values, settings, end):
    assert stops_at(values, **settings) == end


def test_evaluations_without_the_metric_and_runs_without_one_do_not_count():
    stopping = EarlyStopping(StoppingSettings(LOSS, patience=1))
    assert not stopping.see(0, {LOSS: 1.0}) and not stopping.see(1, {"eval/other/acc": 0.0}) and not stopping.see(1, {})
    assert not EarlyStopping(StoppingSettings()).see(5, {LOSS: 1.0})


@pytest.mark.parametrize("cut", range(6))
def test_a_kill_between_evaluations_does_not_change_where_a_run_ends(cut):
    values = [5.0, 4.0, 4.5, 4.1, 4.2, 4.0]
    first = EarlyStopping(StoppingSettings(LOSS, patience=3))
    assert stops_at(values[:cut], first) is None or cut > 4
    resumed = EarlyStopping(StoppingSettings(LOSS, patience=3))
    resumed.restore(json.loads(json.dumps(first.counters)), longer=False)
    if cut <= 4:
        assert stops_at(values[cut:], resumed) == 4 - cut


def ended():
    stopping = EarlyStopping(StoppingSettings(LOSS, patience=2))
    assert stops_at([5.0, 4.0, 4.5, 4.1], stopping) == 3
    stopping.end()
    return stopping


def test_a_run_that_has_ended_stays_so_until_its_patience_or_its_length_grows():
    def resumed(longer=False, **settings):
        stopping = EarlyStopping(StoppingSettings(**{"metric": LOSS, "patience": 2} | settings))
        stopping.restore(json.loads(json.dumps(ended().counters)), longer=longer)
        return stopping

    assert resumed().ended and resumed(patience=1).ended
    assert not resumed(patience=3).ended and stops_at([4.2], resumed(patience=3)) == 0
    assert not resumed(longer=True).ended and stops_at([4.2, 4.1], resumed(longer=True)) == 1  # the count starts over
    assert resumed(longer=True).counters["best"] == 4.0
    for other in (dict(metric=None), dict(metric="eval/quiz/acc"), dict(mode="max")):
        assert not resumed(**other).ended
    assert ended().words() == f"{LOSS} has not improved in 2 evaluations: its best value, 4, is that of step 10"


def test_the_reason_names_the_best_value_where_it_is_better_by_less_than_min_delta():
    stopping = EarlyStopping(StoppingSettings(LOSS, patience=1, min_delta=0.4))
    assert stops_at([5.0, 4.5, 4.2, 4.3], stopping) == 2
    said = f"{LOSS} has not improved by more than 0.4 in 1 evaluation since step 10 (4.5); its best value, 4.2, is"
    assert stopping.words() == f"{said} that of step 20"
    older = EarlyStopping(StoppingSettings(LOSS))
    older.restore({k: v for k, v in stopping.counters.items() if not k.startswith("peak")}, longer=False)
    older.see(30, {LOSS: 4.6})
    assert (older.counters["peak"], older.counters["peak_step"]) == (4.5, 10)


def test_a_run_whose_patience_ended_at_its_last_step_starts_the_count_over_where_it_is_made_longer():
    complete = EarlyStopping(StoppingSettings(LOSS, patience=2))
    assert stops_at([4.0, 4.1, 4.2], complete) == 2 and not complete.ended  # the last step ends the run by itself
    longer = EarlyStopping(StoppingSettings(LOSS, patience=2))
    longer.restore(complete.counters, longer=True)
    assert stops_at([4.2, 4.1], longer) == 1


def test_a_patience_that_is_lowered_while_a_run_goes_on_ends_it_at_its_next_evaluation():
    first = EarlyStopping(StoppingSettings(LOSS, patience=9))
    assert stops_at([5.0, 6.0, 6.0, 6.0], first) is None
    resumed = EarlyStopping(StoppingSettings(LOSS, patience=2))
    resumed.restore(first.counters, longer=False)
    assert not resumed.ended and stops_at([6.0], resumed) == 0


@pytest.mark.parametrize("leaf", ["patience", "mode", "min_delta"])
def test_settings_without_a_metric_are_refused(leaf):
    config = to_config(StoppingSettings())
    config[leaf] = {"patience": 5, "mode": "max", "min_delta": 0.5}[leaf]
    with pytest.raises(UserError, match=rf"early_stopping\.{leaf} = .* does nothing where .*metric is None"):
        read(config, StoppingSettings, "config.early_stopping")
