"""The clock of a run: its buckets sum to the time since it began, whatever happens in between."""

import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from camelid.train import goodput
from camelid.train.goodput import BUCKETS, Clock


@pytest.fixture
def at(monkeypatch):
    """The time on the clock, in a list of one number."""
    at = [100.0]
    monkeypatch.setattr(goodput, "now", lambda: at[0])
    return at


def spent(clock):
    return {bucket: seconds for bucket, seconds in clock.seconds().items() if seconds}


def test_the_innermost_bucket_counts_and_all_sum_to_the_time_since_the_beginning(at):
    clock = Clock(begin=90.0)
    at[0] += 5
    clock.enter("training")
    at[0] += 3
    with pytest.raises(KeyError), clock.time("evaluation"):
        at[0] += 2
        with clock.time("checkpoint"):
            assert clock.doing() == ("saving", 0.0)
            at[0] += 1
        assert clock.doing()[0] == "evaluating"
        at[0] += 4
        raise KeyError
    at[0] += 7
    assert clock.doing() == ("training", 7.0)
    assert spent(clock) == {"start": 15.0, "training": 10.0, "evaluation": 6.0, "checkpoint": 1.0}
    assert sum(clock.seconds().values()) == at[0] - 90.0 and clock.seconds().keys() == set(BUCKETS)


def test_what_a_step_takes_beyond_the_median_is_a_stall_if_it_is_far_more(at):
    clock = Clock(begin=100.0)
    clock.enter("training")
    for step, seconds in enumerate([50.0, *[1.0] * 20, 2.9, 61.0, 1.0], start=1):  # the first is not judged
        at[0] += seconds
        with clock.time("evaluation"):
            at[0] += 100.0
        clock.step_done(step)
    expected = {"training": 50.0 + 21.0 + 2.9 + 1.0, "stall": 60.0, "evaluation": 2400.0}
    assert spent(clock) == pytest.approx(expected)
    for step in range(25, 100):  # steps that stay longer are no stalls any more
        at[0] += 5.0
        clock.step_done(step)
    assert spent(clock)["stall"] < 60.0 + 4.0 * 60


def test_compiling_is_moved_from_wherever_it_happens_and_counted_once():
    clock = Clock()
    with clock.watching_compiler(), clock.time("evaluation"):
        jax.jit(lambda x: jnp.tanh(x) @ x.T + jnp.arange(7.0).sum())(jnp.ones((8, 8)) * 1.5)
    found = spent(clock)
    assert found["compile"] > 0 and sum(found.values()) < 60
    again = Clock()
    with again.watching_compiler():
        thread = threading.Thread(target=lambda: jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(3)))
        thread.start()
        thread.join()
    assert again.seconds()["compile"] == 0  # another thread's time is not the run's


def test_an_event_within_another_one_is_not_counted_twice(at):
    clock = Clock(begin=100.0)
    at[0] += 10.0
    clock._on_event("/jax/core/compile/backend_compile_duration", 1.0)
    at[0] += 1.0
    clock._on_event("/jax/core/compile/backend_compile_duration", 0.5)
    at[0] += 1.0
    clock._on_event("/jax/core/compile/jaxpr_trace_duration", 6.0)
    clock._on_event("/jax/compilation_cache/cache_retrieval_time_sec", 6.0)
    assert spent(clock) == {"compile": 6.0, "start": 6.0}


def test_a_process_knows_when_it_was_created():
    script = "import time; time.sleep(0.3); from camelid.train import goodput as g; print(g.now() - g.process_begin())"
    begin = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert 0.3 <= float(said) <= time.monotonic() - begin + 0.02
