"""Saves a run's checkpoints in the background, verifies them on disk, and deletes old ones.

A run directory holds

    checkpoints/<step>/   the state after `step` updates, and the manifest
    tokenizer/            the tokenizer's files

A checkpoint is regular, or temporary: saved because some time has passed or a signal ended the run, and deleted
as soon as a newer one is complete.

The manifest holds what a reader needs besides the arrays: the resolved config, the chat template, hashes, versions. It
is stored as Orbax's custom metadata, so that one rename makes arrays and manifest appear together. The checksums of all
files are written next and complete the checkpoint (`checkpoints/proof.py`).
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ..data.tokenizer import Tokenizer
from ..errors import UserError
from . import proof
from .paths import absolute_path
from .reading import Best, check_fits, find, read_errors, stored_shapes, with_shardings

# `save` and `wait` raise the errors of Orbax's threads; Orbax would log them a second time, with tracebacks.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread" not in str(record.msg))


MAX_STEPS_UNASKED = 10_000
"""Most steps after which several processes ask again whether a temporary save is due."""


class NotSaved(OSError):
    """A checkpoint could not be written; the message names its step, the reason and the last complete checkpoint."""


class Checkpoints:
    """The checkpoints that a run writes and resumes from.

    Every process of a run calls every method. A save that failed in the background raises NotSaved at the next `save`,
    `wait`, `restore` or `close`. Old checkpoints are deleted only after a new one was written and read back.

    Attributes:
      seconds_blocked: seconds in which training waited for a checkpoint.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        every_steps: int | None = None,
        temporary_seconds: float | None = None,
        keep_last: int = 1,
        keep_every: int | None = None,
        best: Best | None = None,
    ):
        """Opens the checkpoints of a run directory, and removes what a killed process left half written.

        Args:
          workdir: the run directory, which is created if needed.
          every_steps: saves at every multiple of this number of steps.
          temporary_seconds: saves when so many seconds have passed since the last save. Such a checkpoint is temporary:
            it is deleted as soon as a newer one is complete, unless it is the best.
          keep_last: number of newest checkpoints that are kept, temporary ones not counted.
          keep_every: saves at every multiple of this number of steps, and keeps these checkpoints for ever.
          best: saves and keeps the checkpoint whose evaluation is the best by this rule.
        """
        self.seconds_blocked = 0.0
        self._directory = absolute_path(workdir) / "checkpoints"
        self._multiples = [steps for steps in (every_steps, keep_every) if steps]
        self._temporary_seconds = temporary_seconds
        self._saved_at: float | None = None  # when the last save began; None before the first step
        self._kind: tuple[int, str | None] = (-1, None)  # a step, with the kind of save that is due there
        self._ask = 0  # the next step at which process 0 is asked for the time
        self._asked = 0, 0.0  # step and time of the last question
        self._temporary: dict[int, bool] = {}  # whether the checkpoint of a step on disk is temporary
        self._keep_last, self._keep_every, self._best = keep_last, keep_every, best
        self._pending: tuple[int, Future] | None = None  # the save in progress
        self._replaceable: set[int] = set()  # steps on disk that a resumed run computes and saves again
        self._newest: int | None = None  # the step that `latest` found undamaged, until the next save
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            proof.remove_leftovers(self._directory)

    def save(
        self,
        step: int,
        state: Any,
        manifest: dict,
        *,
        force: bool = False,
        metrics: Mapping[str, float] | None = None,
        keep_others: bool = False,
        temporary: bool = False,
        again: bool = False,
    ) -> bool:
        """Starts to save the state after `step` updates if a save is due.

        Waits for the previous save first. Returns as soon as the arrays are copied off the devices, so that they may be
        donated to the next update. A step whose checkpoint is already on disk is not written again without `again`.

        Args:
          step: the number of updates so far.
          state: tree of arrays.
          manifest: metadata to save with the state; "step" and the checksum kind are added.
          force: saves even if no save is due.
          metrics: evaluation metrics of this state, by which the best checkpoint is chosen.
          keep_others: deletes no older checkpoint after this save.
          temporary: whether a forced save, which is not due by its step, is a temporary one.
          again: replaces the checkpoint of this step, if the save is forced or its evaluation is the best.

        Returns:
          Whether a save was started.

        Raises:
          NotSaved: this save cannot be started, or the previous one failed.
        """
        metrics = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
        with self._blocking():
            kind, improves = self._due(step), self._improves(step, metrics)
            if not (force or kind or improves):
                return False
            temporary = not improves and kind != "regular" and (kind == "temporary" or temporary)
            self._finish_pending()
            path = self.path(step)
            again = again and (force or improves)
            if path.exists() and proof.is_complete(path) and step not in self._replaceable and not again:
                return False
            if jax.process_index() == 0 and path.exists():
                (proof.delete if again or proof.is_cut_off(path) else proof.set_aside)(path)
            self._replaceable.discard(step)
            self._newest = None
            self._temporary[step] = temporary
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"checkpoint {step}")
            metadata = {"step": step, "checksums": "crc32"} | ({"metrics": metrics} if metrics else {}) | manifest
            metadata |= {"temporary": True} if temporary else {}
            try:
                response = ocp.save_async(path, state, custom_metadata=metadata)
            except Exception as error:
                raise self._not_saved(step, error) from error
            self._pending = (step, self._pool.submit(self._complete, step, response, keep_others))
            self._saved_at, self._kind = time.monotonic(), (step, None)
            return True

    def due(self, step: int) -> bool:
        """Whether `save` will save this step by its number or by the time, whatever its metrics are."""
        return self._due(step) is not None

    def path(self, step: int) -> epath.Path:
        """The folder of a step's checkpoint, which need not exist."""
        return self._directory / str(step)

    def latest(self) -> int | None:
        """The step of the newest undamaged checkpoint; None if there is none (see `proof.newest_whole`)."""
        self._newest = proof.newest_whole(self._directory)
        return self._newest

    def holds(self, step: int, name: str) -> bool:
        """Whether the state saved at `step` has an entry called `name`."""
        return name in stored_shapes(self._undamaged(step))

    def best(self) -> int | None:
        """The step of the checkpoint that is kept as the best; None if none is."""
        return None if self._best is None else self._best.among(self._directory, self._valid_steps())

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """Loads a saved state. Checkpoints of later steps on disk will be replaced as the run saves those steps again.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with the shapes, dtypes and shardings to load; a leaf without a
            sharding goes to the first local device.
          step: the step to load; None for the newest undamaged one.

        Raises:
          UserError: there is no checkpoint, it is damaged, or it holds another tree; the message lists the paths that
            differ.
        """
        self.wait()
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self._directory}: no complete checkpoint to restore")
        path = self._undamaged(step)
        self._replaceable = {other for other in proof.complete_steps(self._directory) if other > step}
        check_fits(stored_shapes(path), abstract_state, path)
        with read_errors(path):
            return ocp.load(path, with_shardings(abstract_state))

    def wait(self) -> None:
        """Blocks until the save in progress is complete."""
        with self._blocking():
            self._finish_pending()

    def close(self) -> None:
        """Waits for the save in progress, then ends the thread that saves."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _undamaged(self, step: int) -> epath.Path:
        """The folder of a step's checkpoint. Raises UserError if a file is damaged.

        A large checkpoint takes long to read, so the one that `latest` has just read is not read again.
        """
        return self.path(step) if step == self._newest else find(self.path(step))

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[None]:
        """Adds the time inside to `seconds_blocked`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_blocked += time.perf_counter() - start

    def _due(self, step: int) -> str | None:
        """The kind of save that is due at a step, regular or temporary; None for none."""
        if self._kind[0] != step:
            self._kind = step, self._kind_due(step)
        return self._kind[1]

    def _kind_due(self, step: int) -> str | None:
        if any(step % steps == 0 for steps in self._multiples):
            return "regular"
        return "temporary" if self._temporary_seconds and self._time_is_up(step, self._temporary_seconds) else None

    def _time_is_up(self, step: int, seconds: float) -> bool:
        """Whether so many seconds have passed since the last save, by the clock of process 0.

        Several processes ask it at few steps: it answers how many steps take half of the time that is left.
        """
        now = time.monotonic()
        if self._saved_at is None:
            self._saved_at, self._asked = now, (step, now)
        left = seconds - (now - self._saved_at)
        if jax.process_count() == 1:
            return left <= 0
        if step < self._ask:
            return False
        steps, took = step - self._asked[0], now - self._asked[1]
        wait = 0 if left <= 0 else min(max(1, int(left / 2 * steps / max(took, 1e-9))), MAX_STEPS_UNASKED)
        wait = int(multihost_utils.broadcast_one_to_all(np.int32(wait)))
        self._ask, self._asked = step + max(wait, 1), (step, now)
        return wait == 0

    def _improves(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether these evaluation metrics are better than those of every checkpoint, including one being written."""
        if self._best is None or self._best.metric not in metrics:
            return False
        self._finish_pending()
        before = self.best()
        values = {} if before is None else {before: proof.manifest_in(self.path(before))["metrics"][self._best.metric]}
        return self._best.of(values | {step: metrics[self._best.metric]}) == step

    def _valid_steps(self) -> list[int]:
        """The steps of complete checkpoints that will not be replaced."""
        return [step for step in proof.complete_steps(self._directory) if step not in self._replaceable]

    def _complete(self, step: int, response: Any, keep_others: bool) -> None:
        """Finishes a save in the background: waits for Orbax, writes the checksums, deletes old checkpoints.

        Process 0 does this; the others wait for its checksums, so that all processes then see the same files.
        """
        response.result()
        if jax.process_index() == 0:
            proof.prove(self.path(step))
            if not keep_others:
                self._prune(step)
            return
        while not proof.is_complete(self.path(step)):  # ends if process 0 dies: JAX then ends this process too
            time.sleep(0.1)

    def _prune(self, newest: int) -> None:
        """Deletes older checkpoints that need not be kept, and cut-off ones, after the save of step `newest`."""
        steps = [step for step in self._valid_steps() if step <= newest]
        regular = [step for step in steps if not self._is_temporary(step)]
        kept = {*regular[-self._keep_last :]}
        kept |= {step for step in regular if self._keep_every and step % self._keep_every == 0}
        kept |= {self._best.among(self._directory, steps)} if self._best is not None else set()
        gone = [step for step in proof.numbered(self._directory) if proof.is_cut_off(self.path(step))]
        gone += [step for step in self._replaceable if self._is_temporary(step)]  # no step need ever save them again
        for step in {*steps, *gone}:
            if step < newest and step not in kept and self.path(step).exists():
                proof.delete(self.path(step))

    def _is_temporary(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept only until a newer one is complete."""
        if step not in self._temporary:
            self._temporary[step] = bool(proof.manifest_in(self.path(step)).get("temporary"))
        return self._temporary[step]

    def _finish_pending(self) -> None:
        """Waits for the save in progress. Raises NotSaved if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, future = pending
        try:
            future.result()
        except Exception as error:
            raise self._not_saved(step, error) from error

    def _not_saved(self, step: int, error: Exception) -> NotSaved:
        """The error for a save that failed; removes what the save left half written."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                proof.remove_leftovers(self._directory)  # the disk may be full because of them
        last = self.latest()
        before = "there is none before it" if last is None else f"the last complete one is of step {last}"
        why = " ".join(str(error).split())
        return NotSaved(f"the checkpoint of step {step} was not written to {self._directory}: {why} ({before})")


def keep_tokenizer(workdir: epath.PathLike, tokenizer: Tokenizer) -> None:
    """Copies the tokenizer's files into the folder "tokenizer" of a run directory."""
    if jax.process_index() == 0:
        tokenizer.save(absolute_path(workdir) / "tokenizer")
