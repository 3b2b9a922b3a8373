"""The loop around an update: batches in, metrics out one step late, evaluations, checkpoints, a clean end.

Nothing here knows what is being trained.
"""

import contextlib
import functools
import itertools
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
from ..data.console import tell
from ..data.prefetch import prefetch
from ..errors import UserError
from ..settings.leaves import Count, Only, Unset, Whole
from .goodput import Clock
from .lengths import Lengths
from .means import Means
from .report import Reporter
from .state import State
from .stopping import EarlyStopping, StoppingSettings
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
"""check(step, metrics) sees the metrics of each step and of evaluations. It raises TrainingStopped to end the run. One
that counts over steps has `counters`, which JSON can hold, and `restore(counters)`: a checkpoint keeps them."""

HINT_AFTER = 3.0
"""Seconds after which a line says that the first evaluation or step is being compiled."""
COMPILED_AGAIN = 1.0
"""Seconds of compiling in a later step of which a line tells."""

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

    What steps leave on the host, such as the sums of the next report, belongs to the state: metrics of a step are read
    before it is saved, and `notes` says what else the manifest has to hold.

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
      stopping: may end the run after an evaluation.
      clock: counts where the time goes.
      means: sums of the next report.
      missed: names of evaluations that the run left out at its first step, because a signal ended it there.
      notes: notes() -> further entries of the manifest of a checkpoint that is saved now.

    Attributes:
      ended_early: whether `stopping` ended the run.
      guard: guard() -> a context around each step, in which nothing moves between host and devices unasked.
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
        stopping: EarlyStopping | None = None,
        clock: Clock | None = None,
        means: Means | None = None,
        missed: Sequence[str] = (),
        notes: Callable[[], Mapping[str, Any]] = dict,
    ):
        self.state, self.metrics, self.ended_early = state, {}, False
        self.guard: Callable[[], contextlib.AbstractContextManager] = functools.partial(jax.transfer_guard, "disallow")
        self._batches, self._sharding, self._log, self._total = batches, sharding, lengths.log, lengths.total
        self._start = self._done = int(state["step"])
        self._evaluations, self._check, self._reporter = evaluations, check, reporter
        self._checkpoints, self._manifest, self._profiler, self._finish = checkpoints, manifest, profiler, finish
        self._stopping, self._clock = stopping or EarlyStopping(StoppingSettings()), clock or Clock()
        self._means, self._notes = Means() if means is None else means, notes
        self._missed = [e for e in evaluations if e.name in missed]
        self._meter = Meter(flops_per_token)
        self._tokens: list[float] = []  # trained by each step since the last report of speed
        self._pending: Mapping[str, jax.Array] | None = None
        self._received: Sequence[int] = ()
        self._stack = contextlib.ExitStack()
        self._steps = self._run()

    def __enter__(self) -> "Loop":
        if self._start == 0:
            with hint("evaluating before the first step; its programs are compiled once"):
                self._stopping.see(0, self._evaluate(self._evaluations))
        ready = prefetch(self._batches, self._start, self._total, self._sharding)
        self._ready = self._stack.enter_context(contextlib.closing(ready))
        self._received = self._stack.enter_context(signals())
        self._profile = self._stack.enter_context(self._profiler)
        return self

    def __iter__(self) -> Iterator[Mapping[str, jax.Array]]:
        return self._steps

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._steps.close()  # which is inside of a step where the update failed
        with self._stack:
            if isinstance(error, TrainingStopped | UserError | OSError):
                raise self._stopped(error) from error
        self._clock.enter("checkpoint", "ending")
        if error is None and self._done < self._total and not self.ended_early:
            raise _interrupted(self._received, self._done, self._total)

    def waited(self, bucket: str, seconds: float) -> None:
        """Counts seconds in which this run waited for others of its process, between two steps, to a bucket of the
        clock; they are no training."""
        self._clock.move(bucket, seconds)
        self._meter.pause(seconds)

    def _run(self) -> Iterator[Mapping[str, jax.Array]]:
        ends = bool(self._missed) and self._end_step(self._missed, again=True)
        while not ends and (ready := self._next()) is not None:
            step, batch = ready
            self._profile(step)
            with self._compiling(first=step == self._start), self.guard():
                yield batch
            before, self._pending, self._done = self._pending, self.metrics, step + 1
            if before is not None:
                self._take_in(step, before)
            done, total = self._done, self._total
            stop = done < total and _should_stop(self._received)
            due = [e for e in self._evaluations if done % e.every == 0 or done == total]
            if due or stop or done == total or self._checkpoints.due(done):
                metrics, self._pending = self._pending, None
                self._take_in(done, metrics, last=done == total)
            self._clock.step_done(done)
            ends = self._end_step(due, stop=stop)
        with self._clock.time("checkpoint"):
            self._checkpoints.wait()

    def _next(self) -> tuple[int, Mapping[str, jax.Array]] | None:
        """The next step with its batch; None after the last one."""
        with self._clock.time("data"):
            return next(self._ready, None)

    @contextlib.contextmanager
    def _compiling(self, first: bool) -> Iterator[None]:
        """Around the call of a step: what it compiles is told, and left out of the speed."""
        if first:
            self._clock.enter("training")
        before, begin = self._clock.seconds()["compile"], time.perf_counter()
        slow = hint("compiling the step, once; this may take minutes for a large model") if first else _nothing()
        with slow, self._clock.time("training", "compiling" if first else None):
            yield
        compiled = self._clock.seconds()["compile"] - before
        self._meter.pause(time.perf_counter() - begin if first else compiled)
        if first:
            tell(f"compiling, once: {compiled:.1f} s")
        elif compiled > COMPILED_AGAIN:
            tell(f"compiling, for step {self._done}: {compiled:.1f} s")

    def _end_step(self, due: Sequence[Evaluation], *, stop: bool = False, again: bool = False) -> bool:
        """Evaluates and saves the state of a step.

        Args:
          due: evaluations that are due.
          stop: whether the run is to end at once. The evaluations are then left to the process that resumes it.
          again: whether these evaluations were left by the process before, which has saved this state.

        Returns:
          Whether the run ends.
        """
        done = self._done
        found = {} if stop else self._evaluate(due)
        enough, ends = self._stopping.see(done, found), done == self._total
        if enough and not ends:
            ends = self.ended_early = True
            found |= self._evaluate([e for e in self._evaluations if e not in due])
            if not self._means.is_empty:
                self._report(done)
            self._stopping.end()
        if ends and self._finish is not None:
            self.state = self._finish(self.state)
        manifest = self._manifest | self._notes() | ({"missed": [e.name for e in due]} if stop and due else {})
        how = dict(force=ends or stop, temporary=stop, again=again)
        with self._clock.time("checkpoint"):
            self._checkpoints.save(done, self.state, manifest, metrics=found, **how)
        return ends or stop

    def _evaluate(self, due: Sequence[Evaluation]) -> dict[str, float]:
        """The metrics of evaluations, whose time is no training."""
        begin = time.perf_counter()
        with self._clock.time("evaluation") if due else _nothing():
            found = _evaluate(due, self._done, self.state, self._check, self._reporter)
        self._meter.pause(time.perf_counter() - begin)
        return found

    def _take_in(self, done: int, metrics: Mapping[str, jax.Array], *, last: bool = False) -> None:
        """Takes in the metrics of the step before, after which `done` steps are done, and reports when it is due."""
        of_step = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._means.add(of_step)
        self._tokens.append(of_step["tokens"])
        if done % self._log == 0 or last:
            self._report(done)
        self._check(done - 1, of_step)

    def _report(self, done: int) -> None:
        values = self._means.read() | self._meter.read(sum(self._tokens), len(self._tokens)) | memory()
        values["seconds_waiting_for_data"] = self._ready.waited
        values["seconds_waiting_for_checkpoints"] = self._checkpoints.seconds_blocked
        self._tokens.clear()
        named = {name if "/" in name else f"train/{name}": value for name, value in values.items()}
        self._reporter.write(done, named | _epochs(self._batches, done))

    def _stopped(self, error: Exception) -> Exception:
        """Saves the state at which an error ended the run, and returns the error with words about what was saved."""
        done = self._done
        with contextlib.suppress(TrainingStopped, UserError, OSError):
            if self._pending is not None:
                self._take_in(done, self._pending, last=True)
            elif not self._means.is_empty and done > self._start:
                self._report(done)
        words = "nothing new to save"
        if done > self._start:
            words = _save_stopped(error, done, self.state, self._checkpoints, self._manifest | self._notes())
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
        checkpoints.save(done, state, manifest, force=True, temporary=True, keep_others=True)
        checkpoints.wait()
    except OSError as second:
        either = isinstance(error, NotSaved)  # for the same reason
        return f"the state of step {done} could not be saved{' either' if either else f': {second}'}"
    return f"the state of step {done} is saved"


@contextlib.contextmanager
def hint(line: str) -> Iterator[None]:
    """Tells a line where what is inside takes longer than `HINT_AFTER` seconds; once, where several runs of a process
    wait for the same."""
    if line in _hints:
        yield
        return
    timer = threading.Timer(HINT_AFTER, tell, (line,))
    timer.daemon = True
    _hints.add(line)
    with contextlib.suppress(RuntimeError):  # no thread can be started
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _hints.discard(line)


_hints: set[str] = set()
"""Lines of contexts of `hint` that are entered."""


_nothing = contextlib.nullcontext


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


_ASKED = itertools.count(1)
"""Numbers the questions of `_should_stop` to the coordination service, over all loops of this process."""


def _should_stop(received: list[int]) -> bool:
    """Whether a signal asks to save and end after this step. The processes of a run agree on the step.

    JAX plans the end for the question after the one that was last asked, by their numbers. Numbers that begin at the
    step of a resumed run would skip the planned one, and a signal before its first step would be lost.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(next(_ASKED))
    return bool(received)


_received: list[list[int]] = []
"""The list of the outermost context of `signals` that is entered; empty outside of it."""


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list to which SIGTERM, SIGHUP (not under `nohup`) and Ctrl-C are appended, instead of ending the process.

    A second Ctrl-C ends the process. Where several processes train together, JAX's coordination service handles
    SIGTERM, and Ctrl-C is sent on as SIGTERM. A context within another one gives the list of the outer one, so that
    all loops of a process see the same signals.
    """
    if _received:
        yield _received[0]
        return
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
    _received.append(received)
    try:
        yield received
    finally:
        _received.clear()
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
