"""Checkpoints: written in the background, proven whole, found by path, loaded onto any mesh.

A run directory holds

    checkpoints/<step>/   the state after `step` updates, and with it the manifest
    tokenizer/            the tokenizer's model file

The manifest is what a reader needs besides the arrays: the resolved config, the chat template, fingerprints, versions.
It is Orbax's custom metadata, so that arrays and manifest appear together, by one rename. Checksums of all files, whose
own file completes a checkpoint, follow at once (`train/proof.py`).
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ..data.errors import UserError
from ..data.tokenizer import Tokenizer
from . import proof
from .proof import ORBAX_FILE

BEST = "@best"  # RUN@best is the checkpoint of a run that its `checkpoint.best` keeps
SHOWN = 10  # how many leaves of a kind an error message lists


# What goes wrong in Orbax's threads is raised by `save` and `wait` here; its log has it once more, with tracebacks.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread" not in str(record.msg))


class NotSaved(OSError):
    """A checkpoint could not be written: which, why, and which is the last complete one."""


class Best(NamedTuple):
    """`config.checkpoint.best`: the metric of evaluations by which the best checkpoint is kept, and "max" or "min"."""

    metric: str
    mode: str

    def of(self, values: Mapping[int, float]) -> int | None:
        """The step with the best value, the later one of two equals."""
        sign = 1.0 if self.mode == "max" else -1.0
        return max(values, key=lambda step: (sign * values[step], step), default=None)

    def among(self, directory: epath.Path, steps: Sequence[int]) -> int | None:
        """The best of the checkpoints at `steps`, by what their manifests say; None where none says the metric."""
        metrics = {step: proof.manifest_in(directory / str(step)).get("metrics", {}) for step in steps}
        return self.of({step: found[self.metric] for step, found in metrics.items() if self.metric in found})


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
        self._directory = _absolute(workdir) / "checkpoints"
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
        return name in _stored(find(self.path(step)))

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
        _check_fits(_stored(path), abstract_state, path)
        with readable(path):
            return ocp.load(path, _placed(abstract_state))

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


def describe(
    config: ml_collections.ConfigDict, *, tokenizer=None, template=None, data_fingerprint: str | None = None
) -> dict:
    """The manifest of a run: JSON-able, without the step, which `Checkpoints.save` adds."""
    return {
        "config": json.loads(config.to_json()),
        "tokenizer": describe_tokenizer(tokenizer),
        "template": template and {"name": template.name, "source": template.source},
        "data_fingerprint": data_fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax")},
    }


def describe_tokenizer(tokenizer: Tokenizer | None) -> dict | None:
    """What a manifest says of a tokenizer."""
    if tokenizer is None:
        return None
    return {
        "fingerprint": tokenizer.fingerprint,
        "model_file": tokenizer.model_fingerprint,
        "adds_bos": tokenizer.adds_bos,
    }


def same_tokenizer(saved: dict | None, described: dict | None) -> bool:
    """Whether a manifest means this tokenizer. Older ones say the hash of the model file and nothing else."""
    if saved is None or described is None or "adds_bos" in saved:
        return saved == described
    return saved["fingerprint"] == described["model_file"]


def keep_tokenizer(workdir: epath.PathLike, tokenizer: Tokenizer) -> None:
    """Copies the tokenizer's file into the run directory, where `load_tokenizer` finds it."""
    if jax.process_index() == 0:
        tokenizer.save(_absolute(workdir) / "tokenizer")


def load_tokenizer(path: epath.PathLike) -> Tokenizer | None:
    """The tokenizer of a run directory or checkpoint, checked against the manifest; None where the run had none.

    A run whose manifest does not say whether bos is added keeps the tokens that it was trained with.
    """
    path = find(path)
    expected = read_manifest(path)["tokenizer"]
    if expected is None:
        return None
    tokenizer = Tokenizer.load(path.parent.parent / "tokenizer")
    if "adds_bos" not in expected:
        tokenizer = tokenizer.as_trained_before()
    if not same_tokenizer(expected, describe_tokenizer(tokenizer)):
        raise UserError(f"{path.parent.parent / 'tokenizer'}: not the tokenizer that {path} was trained with")
    return tokenizer


def find(path: epath.PathLike) -> epath.Path:
    """The checkpoint that `path` means: itself, the latest of a run directory, or the best of one (RUN@best).

    It is whole. UserError where it is damaged; of a run directory a damaged latest one is told and passed over.
    """
    given = os.fspath(path)
    path = _absolute(path)
    if given.endswith(BEST) and not path.exists():
        return _find_best(_absolute(given.removesuffix(BEST)))
    if not path.exists():
        of_run = path.parent.name == "checkpoints" and path.parent.exists()
        gone = "; a run that goes on deletes its older ones: try again, or name another" if of_run else ""
        raise UserError(f"{path}: no such checkpoint or run directory{gone}")
    if proof.is_checkpoint(path):
        if problem := proof.damage_of(path):
            raise UserError(f"{path} is damaged: {problem}; take another checkpoint of the run")
        return path
    newest = proof.newest_whole(path / "checkpoints")
    if newest is None:
        raise UserError(f"{path}: neither a complete checkpoint nor a run directory that holds one")
    return path / "checkpoints" / str(newest)


def _find_best(run: epath.Path) -> epath.Path:
    asked = read_manifest(run)["config"].get("checkpoint", {}).get("best")
    if not asked:
        raise UserError(f"{run}{BEST}: its run had no config.checkpoint.best, by which one would have been kept")
    directory = run / "checkpoints"
    step = Best(*asked).among(directory, proof.complete_steps(directory))
    if step is None:
        raise UserError(f"{run}{BEST}: none of its checkpoints was made at an evaluation with {asked[0]}")
    return find(directory / str(step))


def read_manifest(path: epath.PathLike) -> dict:
    """The manifest of a checkpoint or of a run directory's latest: `describe`'s dict and "step"."""
    path = find(path)
    manifest = proof.manifest_in(path)
    if "config" not in manifest:
        raise UserError(f"{path}: no checkpoint of camelid's: its {ORBAX_FILE} has no manifest or cannot be read")
    return manifest


def digest(path: epath.PathLike) -> str | None:
    """What tells the checkpoint at `path` from every other; None for those of versions without checksums."""
    return proof.digest(find(path))


def params_inside(path: epath.PathLike, name: str = "params") -> list[str]:
    """The keys under which a checkpoint's state holds parameters; of several networks, those that it calls `policy`."""
    return [name, *filter(None, [read_manifest(path).get("policy")])]


def load_params(path: epath.PathLike, abstract_params: Any, *, name: str = "params", some: bool = False) -> Any:
    """Only the parameters of a checkpoint, or another part of its state such as "ema".

    Where a run trains several networks, it is those of the one that its manifest calls `policy`. They are cast to the
    dtypes and laid out in the shardings of `abstract_params` while they are read; nothing else is read. Raises
    UserError with the paths that differ when the checkpoint holds other parameters, or with `some` lacks them.
    """
    path = find(path)
    return load_part(path, abstract_params, params_inside(path, name), some=some)


def load_part(path: epath.PathLike, abstract: Any, inside: Sequence[str], *, some: bool = False) -> Any:
    """The part of a checkpoint's state that lies under the keys `inside`, as `load_params`. some: it may hold more
    than what is asked for."""
    path = find(path)
    stored, asked = _stored(path), _placed(abstract)
    for depth, key in enumerate(inside):
        if not stored.get(key):
            there = "/".join(["its state", *inside[:depth]])
            raise UserError(f"{path}: {there} has no {key!r}, only {', '.join(k for k, v in stored.items() if v)}")
        stored = stored[key]
    for key in reversed(inside):
        stored, asked = {key: stored}, {key: asked}
    _check_fits(stored, asked, path, some=some)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    with context, readable(path):
        loaded = ocp.load(path, asked)
    return functools.reduce(lambda tree, key: tree[key], inside, loaded)


def _absolute(path: epath.PathLike) -> epath.Path:
    path = epath.Path(path).expanduser()
    return path if path.is_absolute() else path.resolve()  # resolve() would take gs:// for a folder's name


def _stored(path: epath.Path) -> dict[str, Any]:
    """Shapes and dtypes of the state in a checkpoint."""
    with readable(path):
        stored = ocp.metadata(path).metadata
        if not isinstance(stored, dict):
            raise ValueError("what its arrays are is damaged")
        return stored


@contextlib.contextmanager
def readable(path: epath.Path) -> Iterator[None]:
    """Says in a line what Orbax and TensorStore find in a damaged checkpoint, as one without checksums may be."""
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if not path.exists():
            raise UserError(f"{path} was deleted while it was read, as a run that goes on does: try again") from error
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error


def _placed(abstract: Any) -> Any:
    """Gives leaves without a sharding the first local device: Orbax would look for the devices of the saving run."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), abstract
    )


def _check_fits(stored: Any, asked: Any, path: epath.Path, *, some: bool = False) -> None:
    """Raises UserError that lists the leaves in which the stored tree, or some of it, and the one asked for differ."""
    stored, asked = _leaves(stored), _leaves(asked)
    both = [name for name in asked if name in stored]
    problems = {
        "missing from the checkpoint": [f"{n} {_form(asked[n])}" for n in asked if n not in stored],
        "only in the checkpoint": [f"{n} {_form(stored[n])}" for n in stored if n not in asked and not some],
        "different": [
            f"{n} {_form(stored[n])}, asked for {_form(asked[n])}"
            for n in both
            if stored[n].shape != asked[n].shape or _kind(stored[n]) != _kind(asked[n])
        ],
    }
    if any(problems.values()):
        listed = [
            f"{len(found)} {kind}: {'; '.join(found[:SHOWN])}{'; ...' if len(found) > SHOWN else ''}"
            for kind, found in problems.items()
            if found
        ]
        raise UserError(f"{path} does not fit: {' | '.join(listed)}")


def _leaves(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _form(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _kind(leaf: Any) -> type:
    """Floats are cast to one another on loading; a float is never taken for an integer."""
    return jnp.floating if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.dtype(leaf.dtype).type
