"""Checkpoints of camelid's own runs that hold whole networks."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama, storage
from ..model.config import LlamaConfig
from ..model.sharding import path_name
from ..model.storage import Rules
from . import proof, reading, streaming
from .checkpoint import Checkpoint, user_errors
from .interop.generation_config import GenerationDefaults


class RunCheckpoint(Checkpoint):
    """A checkpoint of one of camelid's runs.

    Attributes:
      folder: the folder of the checkpoint.
      manifest: its metadata, as `manifest.describe` makes it.
    """

    format = "camelid"

    def __init__(self, path: epath.PathLike, folder: epath.Path, weights: str | None = None):
        """Opens a checkpoint.

        Args:
          path: the path that the user gave: a run directory, RUN@best, RUN@STEP or a checkpoint.
          folder: the folder that `reading.find(path)` returned, whose checksums were compared there.
          weights: "params" or "ema"; None takes the moving average if the run kept one.
        """
        super().__init__(path, weights)
        self.folder, self.manifest = folder, reading.manifest_of(folder)
        self.kind, self.heads = self.manifest.get("kind"), self.manifest.get("heads", 1)
        self.step = self.manifest["step"]

    @functools.cached_property
    def config(self) -> LlamaConfig:
        return LlamaConfig.from_dict(self.manifest["model"])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        return reading.load_tokenizer(self.folder, self.manifest)

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        stored = self.manifest["template"]
        return stored and ChatTemplate(**stored)

    @functools.cached_property
    def generation(self) -> GenerationDefaults:
        return GenerationDefaults.from_dict(self.manifest.get("generation", {}))

    @property
    def keeps_average(self) -> bool:
        return self.manifest["config"].get("ema_decay") is not None

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        return {"path": self.address, "format": self.format, "step": self.step}

    @functools.cached_property
    def identity(self) -> list:
        digest = proof.digest(self.folder)  # versions without checksums have none
        return [self.address, self.step, *([digest] if digest else [])]

    @property
    def inside(self) -> list[str]:
        """The keys of the state that lead to the parameters; of a run of several networks, to those of its policy."""
        return [self.weights, *filter(None, [self.manifest.get("policy")])]

    def load_params(self, abstract: Any, *, some: bool = False, quantize: Rules | None = None) -> Any:
        if quantize is None:
            return reading.load_part(self.folder, abstract, self.inside, some=some)

        def leaf(key_path, asked):  # only one parameter at a time is in memory unquantised
            place = path_name(key_path)
            plain = reading.load_part(self.folder, asked, [*self.inside, *place.split("/")])
            kind = storage.kind_at(quantize, place)
            if kind in (None, storage.STORED):
                return plain
            return jax.jit(storage.encode, static_argnums=(0, 1))(kind, place, plain)

        with user_errors():
            return jax.tree_util.tree_map_with_path(leaf, abstract)

    def matrix(self, path: str, layer: int | None) -> np.ndarray:
        names = path.split("/")
        asked = leaf_at(llama.build(self.config).abstract_params, names)
        found = np.asarray(reading.load_part(self.folder, asked, [*self.inside, *names]))
        return found if layer is None else found[layer]

    def _tensors(self) -> Iterator[np.ndarray]:
        return self._each(self.inside)

    def bits(self) -> Iterator[np.ndarray]:
        """Yields the integers of a difference of two models, in the order of `tensors`."""
        if self.kind != "difference":
            raise UserError(f"{self.name} is a whole model, not a difference that `camelid diff make` wrote")
        return self._each(["params"], dtype=f"uint{8 * np.dtype(self.config.param_dtype).itemsize}")

    def _each(self, inside: Sequence[str], dtype: Any = None) -> Iterator[np.ndarray]:
        """Yields the parameters under the keys `inside` of the state, a layer at a time, read as `dtype`."""
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(llama.build(self.config).abstract_params):
            keys = [*inside, *path_name(key_path).split("/")]
            if keys[len(inside)] == "layers":
                yield from streaming.read_layers(self.folder, keys)
            else:
                asked = jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype)
                yield np.asarray(reading.load_part(self.folder, asked, keys))


def leaf_at(tree: Any, names: Sequence[str]) -> Any:
    """The leaf of a nested dict at a path of keys."""
    return functools.reduce(lambda node, name: node[name], names, tree)
