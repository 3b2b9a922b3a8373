"""Reads camelid's own checkpoints: finds them by path and loads their arrays onto any mesh."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from ..data.tokenizer import Tokenizer
from ..errors import UserError
from . import proof
from .manifest import describe_tokenizer, same_tokenizer
from .paths import absolute_path
from .proof import ORBAX_FILE

BEST = "best"
AT = re.compile(rf"(?P<run>.+)@(?P<step>{BEST}|\d+)/?")
"""RUN@best names the checkpoint that a run keeps by its `config.checkpoint.best`, RUN@500 that of step 500."""
SHOWN = 10  # at most so many leaves of each kind are listed in an error message


class Best(NamedTuple):
    """The rule of `config.checkpoint.best`, by which a run keeps its best checkpoint."""

    metric: str
    """The evaluation metric that is compared."""
    mode: str
    """"max" if larger values are better, "min" if smaller ones are."""

    def of(self, values: Mapping[int, float]) -> int | None:
        """The step with the best value in {step: value}; the later step of two equal values; None if empty."""
        sign = 1.0 if self.mode == "max" else -1.0
        return max(values, key=lambda step: (sign * values[step], step), default=None)

    def among(self, directory: epath.Path, steps: Sequence[int]) -> int | None:
        """The step of the best checkpoint, by the metrics in the manifests.

        Args:
          directory: the folder "checkpoints" of a run.
          steps: the steps to compare.

        Returns:
          The best step; None if no manifest has the metric.
        """
        metrics = {step: proof.manifest_in(directory / str(step)).get("metrics", {}) for step in steps}
        return self.of({step: found[self.metric] for step, found in metrics.items() if self.metric in found})


def load_tokenizer(folder: epath.Path, manifest: Mapping[str, Any]) -> Tokenizer | None:
    """Loads the tokenizer of a run and checks it against the manifest; None if the run had no tokenizer.

    Manifests of older versions do not say whether bos is added; such a tokenizer encodes as those versions did.

    Args:
      folder: the folder of one checkpoint of the run.
      manifest: the manifest of that checkpoint.

    Raises:
      UserError: the tokenizer's files are missing, or are not those of the manifest.
    """
    expected = manifest["tokenizer"]
    if expected is None:
        return None
    place = folder.parent.parent / "tokenizer"
    tokenizer = Tokenizer.load(place)
    if "adds_bos" not in expected:
        tokenizer = tokenizer.as_trained_before()
    if not same_tokenizer(expected, describe_tokenizer(tokenizer)):
        raise UserError(f"{place} is not the tokenizer that {folder} was trained with: put the original files back")
    return tokenizer


def find(path: epath.PathLike) -> epath.Path:
    """The folder of the checkpoint that a path names, after its files were compared with their checksums.

    Args:
      path: a checkpoint, a run directory (its newest whole checkpoint is found; damaged newer ones are reported on
        standard error and skipped), RUN@best or RUN@STEP.

    Raises:
      UserError: there is no checkpoint, or the one named is damaged.
    """
    named = run_and_step(path)
    path = absolute_path(path)
    if named is not None:
        run = absolute_path(named[0])
        return _find_best(run) if named[1] == BEST else _find_step(run, int(named[1]))
    if not path.exists():
        of_run = path.parent.name == "checkpoints" and path.parent.exists()
        gone = "; a run deletes its older checkpoints as it trains: try again, or name another" if of_run else ""
        raise UserError(f"{path}: no such checkpoint or run directory{gone}")
    if proof.is_checkpoint(path):
        if problem := proof.damage_of(path):
            raise UserError(f"{path} is damaged: {problem}; give another checkpoint of the run")
        return path
    newest = proof.newest_whole(path / "checkpoints")
    if newest is None:
        raise UserError(f"{path} is neither a complete checkpoint nor a run directory that holds one")
    return path / "checkpoints" / str(newest)


def run_and_step(path: epath.PathLike) -> tuple[str, str] | None:
    """The run directory and the step, or "best", that RUN@STEP names; None for other paths, and for one that exists."""
    match = AT.fullmatch(os.fspath(path))
    return None if match is None or absolute_path(path).exists() else (match["run"], match["step"])


def at_step(path: epath.PathLike, step: int | str | None) -> epath.PathLike:
    """The path RUN@STEP of a run's checkpoint; the path itself for None.

    Raises:
      UserError: the step is neither "best" nor a number from 0 up, or the path has a step of its own.
    """
    if step is None:
        return path
    if step != BEST and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise UserError(f'step {step!r}: give "best" or a number of steps, such as 500')
    if run_and_step(path) is not None:
        raise UserError(f"{path} names a step, and so does step={step!r}: give only one of the two")
    return f"{os.fspath(path).rstrip('/')}@{step}"


def _find_step(run: epath.Path, step: int) -> epath.Path:
    """The folder of a run's checkpoint of a step, after its files were compared with their checksums."""
    directory = run / "checkpoints"
    if not directory.exists():
        raise UserError(f"{run}@{step}: {run} is no run directory, so it has no checkpoint of a step")
    steps = proof.complete_steps(directory)
    if step in steps:
        return find(directory / str(step))
    there = f"only of {', '.join(map(str, steps))}" if steps else "and none of another step"
    raise UserError(
        f"{run}@{step}: there is no checkpoint of step {step}, {there}; config.checkpoint.keep_every keeps more of them"
    )


def _find_best(run: epath.Path) -> epath.Path:
    """The folder of a run's best checkpoint, after its files were compared with their checksums."""
    newest = find(run)
    asked = manifest_of(newest)["config"].get("checkpoint", {}).get("best")
    if not asked:
        raise UserError(f"{run}@{BEST}: the run had no config.checkpoint.best, so it kept no best checkpoint")
    directory = run / "checkpoints"
    step = Best(*asked).among(directory, proof.complete_steps(directory))
    if step is None:
        raise UserError(f"{run}@{BEST}: no checkpoint of the run was saved at an evaluation that gave {asked[0]}")
    best = directory / str(step)
    return newest if best == newest else find(best)  # `find` reads every file of a checkpoint


def read_manifest(path: epath.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint, or of the latest checkpoint of a run directory."""
    return manifest_of(find(path))


def manifest_of(folder: epath.Path) -> dict[str, Any]:
    """The manifest in the folder of a checkpoint: the entries of `manifest.describe`, and "step"."""
    manifest = proof.manifest_in(folder)
    if "config" not in manifest:
        raise UserError(f"{folder} is no checkpoint of camelid: its {ORBAX_FILE} cannot be read or has no manifest")
    return manifest


def load_part(path: epath.Path, abstract: Any, inside: Sequence[str], *, some: bool = False) -> Any:
    """Loads a part of a checkpoint's state, cast and sharded while it is read.

    Args:
      path: the folder of the checkpoint.
      abstract: tree of `jax.ShapeDtypeStruct` with the shapes, dtypes and shardings to load.
      inside: the keys of the state that lead to the part, such as ("params", "policy").
      some: whether the stored part may have leaves that `abstract` does not have.

    Returns:
      A tree of arrays like `abstract`.

    Raises:
      UserError: the part is missing or has other leaves; the message lists the paths and shapes that differ.
    """
    stored, asked = stored_shapes(path), with_shardings(abstract)
    for depth, key in enumerate(inside):
        if not stored.get(key):
            there = "/".join(["its state", *inside[:depth]])
            raise UserError(f"{path}: {there} has no {key!r}, only {', '.join(k for k, v in stored.items() if v)}")
        stored = stored[key]
    for key in reversed(inside):
        stored, asked = {key: stored}, {key: asked}
    check_fits(stored, asked, path, some=some)
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    with context, read_errors(path):
        loaded = ocp.load(path, asked)
    return functools.reduce(lambda tree, key: tree[key], inside, loaded)


def stored_shapes(path: epath.Path) -> dict[str, Any]:
    """The tree of shapes and dtypes of the state in a checkpoint's folder."""
    with read_errors(path):
        stored = ocp.metadata(path).metadata
        if not isinstance(stored, dict):
            raise ValueError("the description of its arrays is damaged")
        return stored


@contextlib.contextmanager
def read_errors(path: epath.Path) -> Iterator[None]:
    """Turns errors of Orbax and TensorStore while they read the checkpoint at `path` into a UserError of one line."""
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if not path.exists():
            raise UserError(f"{path} was deleted while it was read, as a running training does: try again") from error
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def with_shardings(abstract: Any) -> Any:
    """Puts leaves without a sharding on the first local device; Orbax would look for the devices of the saving run."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), abstract
    )


def check_fits(stored: Any, asked: Any, path: epath.Path, *, some: bool = False) -> None:
    """Raises UserError if a checkpoint does not hold the leaves that are asked for.

    Args:
      stored: tree of the shapes and dtypes in the checkpoint.
      asked: tree of the shapes and dtypes to load.
      path: of the checkpoint, for the message.
      some: whether `stored` may have more leaves than `asked`.
    """
    stored, asked = _leaves(stored), _leaves(asked)
    both = [name for name in asked if name in stored]
    problems = {
        "missing from the checkpoint": [f"{n} {_dtype_and_shape(asked[n])}" for n in asked if n not in stored],
        "only in the checkpoint": [f"{n} {_dtype_and_shape(stored[n])}" for n in stored if n not in asked and not some],
        "different": [
            f"{n} {_dtype_and_shape(stored[n])}, asked for {_dtype_and_shape(asked[n])}"
            for n in both
            if stored[n].shape != asked[n].shape or _dtype_kind(stored[n]) != _dtype_kind(asked[n])
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


def _dtype_and_shape(leaf: Any) -> str:
    """The dtype and shape of a leaf, for a message: float32[64,64]."""
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _dtype_kind(leaf: Any) -> type:
    """The kind of a leaf's dtype. All floats are one kind, because loading casts them; an integer is its own kind."""
    return jnp.floating if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.dtype(leaf.dtype).type
