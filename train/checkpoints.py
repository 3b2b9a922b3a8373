"""Checkpoints: written in the background, found by path, loaded onto any mesh.

A run directory holds

    checkpoints/<step>/   the state after `step` updates, and with it the manifest
    tokenizer/            the tokenizer's model file

The manifest is what a reader needs besides the arrays: the resolved config, the chat template, fingerprints, versions.
It is Orbax's custom metadata, so that arrays and manifest become visible together, by one rename, or not at all: a run
that is killed while it saves leaves a temporary folder which nobody reads and the next run removes.
"""

import contextlib
import functools
import importlib.metadata
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from orbax.checkpoint import v1 as ocp

from ..data.errors import UserError
from ..data.tokenizer import Tokenizer

ORBAX_FILE = "_CHECKPOINT_METADATA"  # Orbax writes it into every checkpoint
SHOWN = 10  # how many leaves of a kind an error message lists


class Checkpoints:
    """The checkpoints that a run writes and resumes from.

    Saves at every multiple of `every_steps`, and when `every_seconds` have gone by since the last save (then also at
    the first chance when there is none yet, so that a path which cannot be written to shows at the start). Keeps the
    last `keep_last`, and for ever each multiple of `keep_every`.

    `seconds_blocked` counts the time in which training stood still for a checkpoint. Every process of a run calls every
    method. A save that failed in the background raises OSError at the next `save`, `wait`, `restore` or `close`.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep_last: int = 1,
        keep_every: int | None = None,
    ):
        when = ocp.training.save_decision_policies
        keep = ocp.training.preservation_policies
        saving = [when.FixedIntervalPolicy(steps) for steps in (every_steps, keep_every) if steps]
        if every_seconds:
            saving.append(when.ContinuousCheckpointingPolicy(minimum_interval_secs=every_seconds))
        keeping = [keep.LatestN(keep_last)] + ([keep.EveryNSteps(keep_every)] if keep_every else [])
        self.seconds_blocked = 0.0
        self._pending = None  # (step, Orbax's response) of the save in progress
        self._directory = _absolute(workdir) / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=when.AnySavePolicy(saving),
            preservation_policy=keep.AnyPreservationPolicy(keeping),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, manifest: dict, *, force: bool = False) -> bool:
        """Starts to save the state after `step` updates if it is due (or `force`); says whether it did.

        Returns as soon as the arrays are copied off the devices: they may then be donated to the next update. Waits for
        the previous save first. A step that already stands on disk is not written again.
        """
        with self._blocking():
            if not force and not self._checkpointer.should_save(step):
                return False
            self._finish_pending()
            if any(saved.step == step for saved in self._checkpointer.checkpoints):
                return False
            response = self._checkpointer.save_async(
                step, state, force=True, custom_metadata={"step": step, **manifest}
            )
            self._pending = (step, response)
            return True

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return max(_complete_steps(self._directory), default=None)

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state saved at `step` (the latest by default), in the shapes, dtypes and shardings of `abstract_state`.

        Leaves are `jax.ShapeDtypeStruct`s; one without a sharding goes to the first local device. Raises UserError with
        the paths that differ when the checkpoint holds another tree.
        """
        self.wait()
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self._directory}: no complete checkpoint to restore")
        path = find(self._directory / str(step))
        _check_fits(ocp.metadata(path).metadata, abstract_state, path)
        return ocp.load(path, _placed(abstract_state))

    def wait(self) -> None:
        """Blocks until the save in progress is complete."""
        with self._blocking():
            self._finish_pending()

    def close(self) -> None:
        """Waits, then lets go of Orbax's threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

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

    def _finish_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, response = pending
        try:
            try:
                response.result()  # ends the response's own thread
            finally:
                self._checkpointer.wait()  # raises an error once in each thread: here, so not again in close()
        except Exception as error:
            raise OSError(
                f"the checkpoint of step {step} was not written to {self._directory}: {error} "
                f"(the last complete one is of step {self.latest()})"
            ) from error


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


def _same_tokenizer(saved: dict | None, described: dict | None) -> bool:
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
    if not _same_tokenizer(expected, describe_tokenizer(tokenizer)):
        raise UserError(f"{path.parent.parent / 'tokenizer'}: not the tokenizer that {path} was trained with")
    return tokenizer


def find(path: epath.PathLike) -> epath.Path:
    """The checkpoint that `path` means: itself, or the latest complete one of a run directory."""
    path = _absolute(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint or run directory")
    if (path / ORBAX_FILE).exists():
        return path
    directory = path / "checkpoints"
    steps = _complete_steps(directory)
    if not steps:
        raise UserError(f"{path}: neither a complete checkpoint nor a run directory that holds one")
    return directory / str(max(steps))


def read_manifest(path: epath.PathLike) -> dict:
    """The manifest of a checkpoint or of a run directory's latest: `describe`'s dict and "step"."""
    path = find(path)
    manifest = json.loads((path / ORBAX_FILE).read_text()).get("custom_metadata")  # `ocp.metadata` reads of all arrays
    if not manifest or "config" not in manifest:
        raise UserError(f"{path}: an Orbax checkpoint, but not one of camelid's: it has no manifest")
    return manifest


def check_continues(path: epath.PathLike, manifest: dict) -> None:
    """Raises UserError if a run with this manifest would go on with other data, another tokenizer or frozen model."""
    saved = read_manifest(path)
    fixed = ("tokenizer", "template", "data_fingerprint", "frozen", "adapter")
    manifest = json.loads(json.dumps(manifest))  # tuples come back from a checkpoint as lists
    changed = [name for name in fixed if saved.get(name) != manifest.get(name)]
    if "tokenizer" in changed and _same_tokenizer(saved["tokenizer"], manifest["tokenizer"]):
        changed.remove("tokenizer")
    if changed:
        raise UserError(f"{find(path)}: its run had another {' and '.join(changed)}; start anew in another workdir")


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
    stored, asked = ocp.metadata(path).metadata, _placed(abstract)
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
    with context:
        loaded = ocp.load(path, asked)
    return functools.reduce(lambda tree, key: tree[key], inside, loaded)


def _absolute(path: epath.PathLike) -> epath.Path:
    path = epath.Path(path).expanduser()
    return path if path.is_absolute() else path.resolve()  # resolve() would take gs:// for a folder's name


def _complete_steps(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    return [found.step for found in ocp.path.step.standard_name_format().find_all(directory)]


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
