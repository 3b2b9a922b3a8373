"""The loop around an update: batches in, metrics out one step late, evaluations, checkpoints, a clean end.

Nothing here knows what is being trained. The host never waits for the step it has just dispatched: it reads the
metrics of the one before.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.experimental import multihost_utils

from ..data.prefetch import prefetch
from .checkpoints import Checkpoints
from .report import Reporter
from .state import State
from .throughput import Meter, memory


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says at which step, why, and how to look into it."""


class Evaluation(NamedTuple):
    """`run(params)` gives metrics, and rows of samples to show; called before the first step, every `every` steps and
    after the last."""

    name: str
    every: int
    run: Callable[[Any], tuple[Mapping[str, float], Sequence[Mapping[str, str]]]]


Step = Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, Any]]]
"""step(state, batch) -> the next state, and scalars about the step: "loss", "tokens", "lr", "skipped", "streak" and
any others. Compiled, with its state donated."""

Check = Callable[[int, Mapping[str, float]], None]
"""check(step, metrics) sees the metrics of each step, and of the evaluations after it; raises TrainingStopped."""


class Pace(NamedTuple):
    """log: steps between reports. profile_at, profile_steps: the steps that are traced into workdir/profile (None:
    none)."""

    log: int
    profile_at: int | None
    profile_steps: int


def train(
    update: Step,
    state: State,
    batches: Any,
    *,
    start: int,
    total: int,
    sharding: jax.sharding.Sharding,
    pace: Pace,
    evaluations: Sequence[Evaluation],
    check: Check,
    reporter: Reporter,
    checkpoints: Checkpoints,
    manifest: dict,
    flops_per_token: float,
    workdir: epath.Path,
) -> State:
    """Runs steps `start` to `total - 1` and returns the last state, or the one at which SIGTERM stopped the run.

    batches: as `data.batches.Batches`. When `check` raises TrainingStopped, the last checkpoint stays.
    """
    meter = Meter(flops_per_token)
    seen: list[dict[str, float]] = []

    def fetch(step: int, metrics: dict[str, jax.Array], *, last: bool = False) -> None:
        """Takes in the metrics of `step`, and reports when a report is due or the step is the last."""
        seen.append({name: float(value) for name, value in jax.device_get(metrics).items()})
        check(step, seen[-1])
        done = step + 1
        if done % pace.log and not last:
            return
        values = _mean(seen) | meter.read(sum(m["tokens"] for m in seen), len(seen)) | memory()
        values["seconds_waiting_for_data"] = ready.waited
        values["seconds_waiting_for_checkpoints"] = checkpoints.seconds_blocked
        named = {name if "/" in name else f"train/{name}": value for name, value in values.items()}
        reporter.write(done, named | _epochs(batches, done))
        seen.clear()

    if start == 0:
        _evaluate(evaluations, 0, state, check, reporter)
    pending = None
    with (
        contextlib.closing(prefetch(batches, start, total, sharding)) as ready,
        _sigterm() as terminated,
        _profiler(workdir / "profile", pace) as profile,
    ):
        for step, batch in ready:
            profile(step)
            begin = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics = update(state, batch)
            if step == start:
                meter.pause(time.perf_counter() - begin)  # compilation
            if pending is not None:
                fetch(step - 1, pending)
            pending, done = metrics, step + 1
            stop = done < total and _should_stop(terminated, step)
            last = stop or done == total
            due = [e for e in evaluations if done % e.every == 0 or done == total] if not stop else []
            if due or last:
                fetch(step, pending, last=last)
                pending = None
                meter.pause(_evaluate(due, done, state, check, reporter))
            checkpoints.save(done, state, manifest, force=last)
            if stop:
                break
    checkpoints.wait()
    return state


def check_streak(max_streak: int) -> Check:
    """The check that stops a run after `max_streak` skipped steps in a row."""

    def check(step: int, metrics: Mapping[str, float]) -> None:
        if metrics.get("streak", 0) >= max_streak:
            raise TrainingStopped(
                f"step {step}: {metrics['streak']:.0f} steps in a row were skipped (loss {metrics['loss']}, gradient "
                f"norm {metrics['grad_norm']}); see its batch with the same --config and: "
                f"camelid data show --step={step}"
            )

    return check


def _mean(seen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the steps of a report; of the counters, the last value; of what is measured per token, by tokens."""
    last = seen[-1]
    accepted = [m for m in seen if m["streak"] == 0] or [last]
    tokens = sum(m["tokens"] for m in accepted)
    means = {name: sum(m[name] * m["tokens"] for m in accepted) / max(tokens, 1) for name in last}
    return means | {name: last[name] for name in ("lr", "skipped", "streak")} | {"tokens": last["tokens"]}


def _epochs(batches: Any, done: int) -> dict[str, float]:
    return {f"epochs/{name}": value for name, value in batches.epochs(done).items()}


def _evaluate(due: Sequence[Evaluation], done: int, state: State, check: Check, reporter: Reporter) -> float:
    """Runs evaluations on the parameters (their moving average where there is one); returns the seconds taken."""
    begin = time.perf_counter()
    found = {}
    for evaluation in due:
        metrics, rows = evaluation.run(state.get("ema", state["params"]))
        named = {f"eval/{evaluation.name}/{name}": value for name, value in metrics.items()}
        found |= named
        reporter.write(done, named)
        if rows:
            reporter.text(done, evaluation.name, rows)
    if found:
        check(done, found)
    return time.perf_counter() - begin


def _should_stop(terminated: list[int], step: int) -> bool:
    """Whether to save and leave after this step; the processes of a run agree on the step."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return bool(terminated)


@contextlib.contextmanager
def _sigterm() -> Iterator[list[int]]:
    """A list that a SIGTERM fills, instead of the process ending."""
    received: list[int] = []
    if jax.process_count() > 1:  # JAX's own coordination listens
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _profiler(directory: epath.Path, pace: Pace) -> Iterator[Callable[[int], None]]:
    """A function to call before each step; it starts and stops the trace."""
    running = False

    def before(step: int) -> None:
        nonlocal running
        if pace.profile_at is None:
            return
        if step == pace.profile_at:
            jax.profiler.start_trace(directory)
            running = True
        elif running and step == pace.profile_at + pace.profile_steps:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
