"""Checkpoints of camelid's own: found by path, and loaded onto any mesh."""

import contextlib
import functools
import os
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

BEST = "@best"  # RUN@best is the checkpoint of a run that its `checkpoint.best` keeps
SHOWN = 10  # how many leaves of a kind an error message lists


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


def load_tokenizer(folder: epath.Path, manifest: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a checkpoint's run, checked against its manifest; None where the run had none.

    A run whose manifest does not say whether bos is added keeps the tokens that it was trained with.
    """
    expected = manifest["tokenizer"]
    if expected is None:
        return None
    place = folder.parent.parent / "tokenizer"
    tokenizer = Tokenizer.load(place)
    if "adds_bos" not in expected:
        tokenizer = tokenizer.as_trained_before()
    if not same_tokenizer(expected, describe_tokenizer(tokenizer)):
        raise UserError(f"{place}: not the tokenizer that {folder} was trained with")
    return tokenizer


def find(path: epath.PathLike) -> epath.Path:
    """The checkpoint that `path` means: itself, the latest of a run directory, or the best of one (RUN@best).

    It is whole. UserError where it is damaged; of a run directory a damaged latest one is told and passed over.
    """
    given = os.fspath(path)
    path = absolute_path(path)
    if given.endswith(BEST) and not path.exists():
        return _find_best(absolute_path(given.removesuffix(BEST)))
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


def read_manifest(path: epath.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint, or of a run directory's latest."""
    return manifest_of(find(path))


def manifest_of(folder: epath.Path) -> dict[str, Any]:
    """The manifest of the checkpoint in a folder that `find` gave: what `manifest.describe` makes, and "step"."""
    manifest = proof.manifest_in(folder)
    if "config" not in manifest:
        raise UserError(f"{folder}: no checkpoint of camelid's: its {ORBAX_FILE} has no manifest or cannot be read")
    return manifest


def load_part(path: epath.Path, abstract: Any, inside: Sequence[str], *, some: bool = False) -> Any:
    """A part of a checkpoint's state, cast to the dtypes and laid out in the shardings of `abstract` while it is read.

    Args:
      path: the folder of the checkpoint, as `find` gives it.
      abstract: a tree of `jax.ShapeDtypeStruct`.
      inside: the keys under which the part lies, such as ("params", "policy").
      some: whether the part may hold more than what is asked for.

    Raises:
      UserError: the part is missing, or has other leaves; the paths and shapes that differ are listed.
    """
    stored, asked = stored_shapes(path), placed(abstract)
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
    with context, readable(path):
        loaded = ocp.load(path, asked)
    return functools.reduce(lambda tree, key: tree[key], inside, loaded)


def stored_shapes(path: epath.Path) -> dict[str, Any]:
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


def placed(abstract: Any) -> Any:
    """Gives leaves without a sharding the first local device: Orbax would look for the devices of the saving run."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), abstract
    )


def check_fits(stored: Any, asked: Any, path: epath.Path, *, some: bool = False) -> None:
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
