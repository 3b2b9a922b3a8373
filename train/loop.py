"""The loop around an update: batches in, metrics out one step late, evaluations, checkpoints, a clean end.

Nothing here knows what is being trained.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from ..checkpoints.saving import Checkpoints, NotSaved
from ..data.prefetch import prefetch
from ..errors import UserError
from ..settings.leaves import Count, Only, Unset, Whole
from .lengths import Lengths
from .report import Reporter
from .state import State
from .throughput import Meter, memory


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says at which step, why, and how to look into it."""


class Interrupted(RuntimeError):
    """A signal ended the run, which saved its state before; `number` is that of the signal."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class Evaluation(NamedTuple):
    """An evaluation of the parameters, which runs before the first step, at an interval, and after the last step."""

    name: str
    """Its metrics are reported as "eval/<name>/<metric>"."""

    every: int
    """Steps between two evaluations."""

    run: Callable[[Any], tuple[Mapping[str, float], Sequence[Mapping[str, str]]]]
    """run(params) -> metrics, and rows of a table of samples."""


Step = Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, Any]]]
"""step(state, batch) -> (the next state, metrics), compiled, with the state donated. Metrics are scalars, among them
"loss", "tokens", "lr", "skipped" and "streak"."""

Check = Callable[[int, Mapping[str, float]], None]
"""check(step, metrics) sees the metrics of each step and of evaluations. It raises TrainingStopped to end the run."""


Profiler = contextlib.AbstractContextManager[Callable[[int], None]]


@dataclass(frozen=True)
class Profile:
    """The section `config.profile`: steps that are traced into WORKDIR/profile."""

    at_step: Annotated[Whole | None, Unset("no trace")] = None
    """The first step of the trace. None: nothing is traced."""

    n_steps: Annotated[Count, Only("at_step", default=3)] = 3
    """Number of steps that are traced."""


class Loop:
    """The steps of a run, as an iterable of batches around an update that the caller makes:

        with Loop(...) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)

    The host does not wait for the step that it has just dispatched: it reads the metrics of the step before.

    SIGTERM, SIGHUP and Ctrl-C end the run after the current step by raising Interrupted, once the state is saved; a
    second Ctrl-C ends it at once. When `check` raises TrainingStopped, a file cannot be read or written (OSError), or a
    reward function fails (UserError), the state is saved too, unless it holds numbers that are not finite. All earlier
    checkpoints then stay.

    Args:
      state: the state, whose "step" is the number of steps that are done. It is donated to the update.
      batches: batches by step, as `data.mixture.Mixture`.
      sharding: the sharding of batches.
      lengths: lengths of the whole run and between reports.
      evaluations: of the parameters; of their moving average where there is one.
      check: sees all metrics and may stop the run.
      reporter: writes metrics.
      checkpoints: saves states.
      manifest: description of the run in its checkpoints.
      flops_per_token: model FLOPs of a step per token, for the reports.
      profiler: traces steps, made by `profiler`.
      finish: finish(state) -> the state that is saved after the last step.
    """

    def __init__(
        self,
        state: State,
        batches: Any,
        sharding: jax.sharding.Sharding,
        lengths: Lengths,
        *,
        evaluations: Sequence[Evaluation],
        check: Check,
        reporter: Reporter,
        checkpoints: Checkpoints,
        manifest: dict,
        flops_per_token: float,
        profiler: Profiler,
        finish: Callable[[State], State] | None = None,
    ):
        self.state, self.metrics = state, {}
        self._batches, self._sharding, self._log, self._total = batches, sharding, lengths.log, lengths.total
        self._start = self._done = int(state["step"])
        self._evaluations, self._check, self._reporter = evaluations, check, reporter
        self._checkpoints, self._manifest, self._profiler, self._finish = checkpoints, manifest, profiler, finish
        self._meter = Meter(flops_per_token)
        self._seen: list[dict[str, float]] = []
        self._pending: Mapping[str, jax.Array] | None = None
        self._received: Sequence[int] = ()
        self._stack = contextlib.ExitStack()
        self._steps = self._run()

    def __enter__(self) -> "Loop":
        if self._start == 0:
            _evaluate(self._evaluations, 0, self.state, self._check, self._reporter)
        ready = prefetch(self._batches, self._start, self._total, self._sharding)
        self._ready = self._stack.enter_context(contextlib.closing(ready))
        self._received = self._stack.enter_context(_signals())
        self._profile = self._stack.enter_context(self._profiler)
        return self

    def __iter__(self) -> Iterator[Mapping[str, jax.Array]]:
        return self._steps

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._steps.close()  # which is inside of a step where the update failed
        with self._stack:
            if isinstance(error, TrainingStopped | UserError | OSError):
                raise self._stopped(error) from error
        if error is None and self._done < self._total:
            raise _interrupted(self._received, self._done, self._total)

    def _run(self) -> Iterator[Mapping[str, jax.Array]]:
        for step, batch in self._ready:
            self._profile(step)
            begin = time.perf_counter()
            with jax.transfer_guard("disallow"):
                yield batch
            if step == self._start:
                self._meter.pause(time.perf_counter() - begin)  # compilation
            before, self._pending, self._done = self._pending, self.metrics, step + 1
            if before is not None:
                self._take_in(step, before)
            done, total = self._done, self._total
            stop = done < total and _should_stop(self._received, step)
            last = stop or done == total
            due = [e for e in self._evaluations if done % e.every == 0 or done == total] if not stop else []
            found = {}
            if due or last:
                metrics, self._pending = self._pending, None
                self._take_in(done, metrics, last=last)
                begin = time.perf_counter()
                found = _evaluate(due, done, self.state, self._check, self._reporter)
                self._meter.pause(time.perf_counter() - begin)
            if done == total and self._finish is not None:
                self.state = self._finish(self.state)
            self._checkpoints.save(done, self.state, self._manifest, force=last, metrics=found)
            if stop:
                break
        self._checkpoints.wait()

    def _take_in(self, done: int, metrics: Mapping[str, jax.Array], *, last: bool = False) -> None:
        """Takes in the metrics of the step before, after which `done` steps are done, and reports when it is due."""
        of_step = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._seen.append(of_step)
        if done % self._log == 0 or last:
            self._report(done)
        self._check(done - 1, of_step)

    def _report(self, done: int) -> None:
        seen = self._seen
        values = _mean(seen) | self._meter.read(sum(m["tokens"] for m in seen), len(seen)) | memory()
        values["seconds_waiting_for_data"] = self._ready.waited
        values["seconds_waiting_for_checkpoints"] = self._checkpoints.seconds_blocked
        seen.clear()
        named = {name if "/" in name else f"train/{name}": value for name, value in values.items()}
        self._reporter.write(done, named | _epochs(self._batches, done))

    def _stopped(self, error: Exception) -> Exception:
        """Saves the state at which an error ended the run, and returns the error with words about what was saved."""
        done = self._done
        with contextlib.suppress(TrainingStopped, UserError, OSError):
            if self._pending is not None:
                self._take_in(done, self._pending, last=True)
            elif self._seen:
                self._report(done)
        words = "nothing new to save"
        if done > self._start:
            words = _save_stopped(error, done, self.state, self._checkpoints, self._manifest)
        # OSError: the terminal is gone as well, or the rewards of a step were not waited for.
        if self._received and isinstance(error, OSError) and (words.endswith("is saved") or done == self._start):
            return _interrupted(self._received, done, self._total)
        kind = next(kind for kind in (TrainingStopped, UserError, OSError) if isinstance(error, kind))
        return kind(f"{error} ({words})")


class Finished:
    """The loop of a run that is complete: it has the last state, and no steps."""

    def __init__(self, state: State):
        self.state, self.metrics = state, {}

    def __iter__(self) -> Iterator:
        return iter(())


def _interrupted(received: Sequence[int], done: int, total: int) -> Interrupted:
    number = received[0] if received else signal.SIGTERM
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    if not done:
        return Interrupted(f"{name} ended the run before its first step was done; the same command starts it", number)
    return Interrupted(
        f"{name} ended the run at step {done} of {total}; it is saved, and the same command resumes it", number
    )


def _save_stopped(error: Exception, done: int, state: State, checkpoints: Checkpoints, manifest: dict) -> str:
    """Saves the state at which an error ended a run, if its numbers are finite. Returns words about what was done."""
    if not isinstance(error, TrainingStopped) and jax.process_count() > 1:  # saving takes all, and only this one knows
        return "its state is not saved; the last checkpoint stays"
    if not _all_finite([state[name] for name in ("params", "ema") if name in state]):
        return f"the parameters of step {done} are not finite and not saved; the last checkpoint stays"
    try:
        checkpoints.save(done, state, manifest, force=True, keep_others=True)
        checkpoints.wait()
    except OSError as second:
        either = isinstance(error, NotSaved)  # for the same reason
        return f"the state of step {done} could not be saved{' either' if either else f': {second}'}"
    return f"the state of step {done} is saved"


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))


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
    """The metrics of a report: means over its steps, weighted by tokens, and the last values of counters."""
    last = seen[-1]
    accepted = [m for m in seen if m["streak"] == 0] or [last]
    tokens = sum(m["tokens"] for m in accepted)
    means = {name: sum(m[name] * m["tokens"] for m in accepted) / max(tokens, 1) for name in last}
    return means | {name: last[name] for name in ("lr", "skipped", "streak")} | {"tokens": last["tokens"]}


def _epochs(batches: Any, done: int) -> dict[str, float]:
    return {f"epochs/{name}": value for name, value in batches.epochs(done).items()}


def _evaluate(due: Sequence[Evaluation], done: int, state: State, check: Check, reporter: Reporter) -> dict[str, float]:
    """Runs evaluations on the moving average of the parameters, or on the parameters. Returns all metrics."""
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
    return found


def _should_stop(received: list[int], step: int) -> bool:
    """Whether a signal asks to save and end after this step. The processes of a run agree on the step."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return bool(received)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGTERM, SIGHUP (not under `nohup`) and Ctrl-C are appended, instead of ending the process.

    A second Ctrl-C ends the process. Where several processes train together, JAX's coordination service handles
    SIGTERM, and Ctrl-C is sent on as SIGTERM.
    """
    received: list[int] = []
    together = jax.process_count() > 1

    def note(number: int, _) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)
        with contextlib.suppress(OSError):  # `camelid train 2>&1 | tee log`: Ctrl-C ends tee first
            os.write(2, b"camelid: ending after this step, saved (Ctrl-C again: at once, not saved)\n")
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    listened_to = () if threading.current_thread() is not threading.main_thread() else (signal.SIGINT,)
    if listened_to and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        listened_to += (signal.SIGHUP,)
    listened_to += () if together or not listened_to else (signal.SIGTERM,)
    before = {number: signal.signal(number, note) for number in listened_to}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def profiler(directory: epath.Path, profile: Profile) -> Iterator[Callable[[int], None]]:
    """Traces steps into `directory`. The context gives a function before(step), to be called before each step."""
    running = False

    def before(step: int) -> None:
        nonlocal running
        if profile.at_step is None:
            return
        if step == profile.at_step:
            jax.profiler.start_trace(directory)
            running = True
        elif running and step == profile.at_step + profile.n_steps:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
