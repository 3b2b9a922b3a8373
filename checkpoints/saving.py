"""The checkpoints that a run writes: saved in the background, proven whole, kept or deleted.

A run directory holds

    checkpoints/<step>/   the state after `step` updates, and with it the manifest
    tokenizer/            the tokenizer's model file

The manifest is what a reader needs besides the arrays: the resolved config, the chat template, fingerprints, versions.
It is Orbax's custom metadata, so that arrays and manifest appear together, by one rename. Checksums of all files, whose
own file completes a checkpoint, follow at once (`checkpoints/proof.py`).
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
from .reading import Best, check_fits, find, placed, readable, stored_shapes

# What goes wrong in Orbax's threads is raised by `save` and `wait` here; its log has it once more, with tracebacks.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread" not in str(record.msg))


class NotSaved(OSError):
    """A checkpoint could not be written: which, why, and which is the last complete one."""


class Checkpoints:
    """The checkpoints that a run writes and resumes from.

    Saves at every multiple of `every_steps` and of `keep_every`, when `every_seconds` have gone by since the last save
    (then also at the first chance, so that a path which cannot be written to shows at the start), and when an
    evaluation is the best so far. Keeps the last `keep_last`, each multiple of `keep_every`, and the best; others are
    deleted when a new checkpoint has been written, read back and found whole.

    `seconds_blocked` counts the time in which training stood still for a checkpoint. Every process of a run calls every
    method. A save that failed in the background raises NotSaved at the next `save`, `wait`, `restore` or `close`.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep_last: int = 1,
        keep_every: int | None = None,
        best: Best | None = None,
    ):
        self.seconds_blocked = 0.0
        self._directory = absolute_path(workdir) / "checkpoints"
        self._multiples = [steps for steps in (every_steps, keep_every) if steps]
        self._every_seconds, self._saved_at = every_seconds, -math.inf
        self._keep_last, self._keep_every, self._best = keep_last, keep_every, best
        self._pending: tuple[int, Future] | None = None  # the save in progress
        self._replaceable: set[int] = set()  # steps on disk that a resumed run makes anew
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
    ) -> bool:
        """Starts to save the state after `step` updates if it is due (or `force`); says whether it did.

        Returns as soon as the arrays are copied off the devices: they may then be donated to the next update. Waits for
        the previous save first. A step that already stands on disk is not written again. metrics: of an evaluation of
        this state. keep_others: nothing is deleted for this checkpoint.
        """
        metrics = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
        with self._blocking():
            if not (force or self._due(step) or self._improves(step, metrics)):
                return False
            self._finish_pending()
            path = self.path(step)
            if path.exists() and proof.is_complete(path) and step not in self._replaceable:
                return False
            if jax.process_index() == 0 and path.exists():
                (proof.delete if proof.is_cut_off(path) else proof.set_aside)(path)
            self._replaceable.discard(step)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"checkpoint {step}")
            said = {"step": step, "checksums": "crc32"} | ({"metrics": metrics} if metrics else {}) | manifest
            try:
                response = ocp.save_async(path, state, custom_metadata=said)
            except Exception as error:
                raise self._not_saved(step, error) from error
            self._pending = (step, self._pool.submit(self._complete, step, response, keep_others))
            self._saved_at = time.monotonic()
            return True

    def path(self, step: int) -> epath.Path:
        """Where the checkpoint of a step lies."""
        return self._directory / str(step)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint; a damaged one is told and passed over."""
        return proof.newest_whole(self._directory)

    def holds(self, step: int, name: str) -> bool:
        """Whether the state saved at `step` has an entry of this name."""
        return name in stored_shapes(find(self.path(step)))

    def best(self) -> int | None:
        """The step of the checkpoint that is kept as the best."""
        return None if self._best is None else self._best.among(self._directory, self._standing())

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state saved at `step` (the latest by default), in the shapes, dtypes and shardings of `abstract_state`.

        Leaves are `jax.ShapeDtypeStruct`s; one without a sharding goes to the first local device. Raises UserError with
        the paths that differ when the checkpoint holds another tree. Later steps on disk will be replaced.
        """
        self.wait()
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self._directory}: no complete checkpoint to restore")
        path = find(self.path(step))
        self._replaceable = {other for other in proof.complete_steps(self._directory) if other > step}
        check_fits(stored_shapes(path), abstract_state, path)
        with readable(path):
            return ocp.load(path, placed(abstract_state))

    def wait(self) -> None:
        """Blocks until the save in progress is complete."""
        with self._blocking():
            self._finish_pending()

    def close(self) -> None:
        """Waits, then ends the thread that saves."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_blocked += time.perf_counter() - start

    def _due(self, step: int) -> bool:
        if any(step % steps == 0 for steps in self._multiples):
            return True
        if not self._every_seconds:
            return False
        due = time.monotonic() - self._saved_at >= self._every_seconds
        return bool(multihost_utils.broadcast_one_to_all(np.int32(due))) if jax.process_count() > 1 else due

    def _improves(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether this evaluation is better than those of all checkpoints, the one that is being written among them."""
        if self._best is None or self._best.metric not in metrics:
            return False
        self._finish_pending()
        before = self.best()
        values = {} if before is None else {before: proof.manifest_in(self.path(before))["metrics"][self._best.metric]}
        return self._best.of(values | {step: metrics[self._best.metric]}) == step

    def _standing(self) -> list[int]:
        return [step for step in proof.complete_steps(self._directory) if step not in self._replaceable]

    def _complete(self, step: int, response: Any, keep_others: bool) -> None:
        """What remains of a save when the arrays are copied: waits for the writing, proves it, deletes what may go.

        Process 0 does that; the others wait until they see the proof, so that all find the same on disk from then on.
        """
        response.result()
        if jax.process_index() == 0:
            proof.prove(self.path(step))
            if not keep_others:
                self._prune(step)
            return
        while not proof.is_complete(self.path(step)):  # if process 0 has died, so does this one
            time.sleep(0.1)

    def _prune(self, newest: int) -> None:
        steps = [step for step in self._standing() if step <= newest]
        kept = {*steps[-self._keep_last :]}
        kept |= {step for step in steps if self._keep_every and step % self._keep_every == 0}
        kept |= {self._best.among(self._directory, steps)} if self._best is not None else set()
        cut_off = [step for step in proof.numbered(self._directory) if proof.is_cut_off(self.path(step))]
        for step in [*steps, *cut_off]:
            if step < newest and step not in kept:
                proof.delete(self.path(step))

    def _finish_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, future = pending
        try:
            future.result()
        except Exception as error:
            raise self._not_saved(step, error) from error

    def _not_saved(self, step: int, error: Exception) -> NotSaved:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                proof.remove_leftovers(self._directory)  # the room that they take may be what is missing
        last = self.latest()
        before = "there is none before it" if last is None else f"the last complete one is of step {last}"
        why = " ".join(str(error).split())
        return NotSaved(f"the checkpoint of step {step} was not written to {self._directory}: {why} ({before})")


def keep_tokenizer(workdir: epath.PathLike, tokenizer: Tokenizer) -> None:
    """Copies the tokenizer's file into the run directory, where `load_tokenizer` finds it."""
    if jax.process_index() == 0:
        tokenizer.save(absolute_path(workdir) / "tokenizer")
