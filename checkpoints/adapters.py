"""Checkpoints of low-rank adapters, which need a base model: another checkpoint."""

import abc
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from ..data import hub
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama, lora, storage
from ..model.config import LlamaConfig
from ..model.lora import Lora
from ..model.sharding import part_sharding, path_name
from ..model.storage import Rules
from ..model.weights import is_adapter, join, matrix_of, without
from . import reading
from .checkpoint import Checkpoint, template_of, tokenizer_in, user_errors
from .interop import peft, tensors
from .interop.generation_config import GenerationDefaults
from .runs import RunCheckpoint, leaf_at

Open = Callable[..., Checkpoint]
"""`checkpoints.open`. It opens the base and is passed in, because its module imports this one."""


class AdapterCheckpoint(Checkpoint):
    """A checkpoint of adapters. Its parameters are those of its base with the adapters merged into them."""

    base: Checkpoint
    """The base model, opened on first use."""
    lora: Lora
    """Which matrices have adapters, with their ranks, scale and kind."""
    quantize: Rules | None = None
    """How the base was quantised in memory during training; None if it was not."""
    own_tokenizer: Tokenizer | None
    """The tokenizer stored with the adapters; None if there is none and the base's tokenizer is used."""
    own_template: ChatTemplate | None
    """The chat template stored with the adapters; None if there is none and the base's template is used."""

    @abc.abstractmethod
    def load_adapters(self, abstract: Any, *, score: Any = None) -> Any:
        """Loads the trained parameters: the adapters, and the parameters that were trained whole.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` of the whole network without adapters, with shardings.
          score: the scalar head to use if `abstract` has one but the adapters were trained on a language model.

        Returns:
          The tree of trained arrays, without the base weights.
        """

    @abc.abstractmethod
    def load_onto(self, abstract: Any, config: LlamaConfig, matrix: peft.Base) -> tuple[Lora, Any]:
        """Loads the adapters for a network that is in memory; the base that they name is not opened.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` of that network without adapters, with shardings.
          config: its configuration.
          matrix: returns one of its matrices, as `peft.read_folder` needs it.

        Returns:
          Which matrices have adapters, and the tree of trained arrays.

        Raises:
          UserError: the adapters do not fit the network.
        """

    def load_params(self, abstract: Any, *, some: bool = False, quantize: Rules | None = None) -> Any:
        """Loads the merged parameters; with `quantize`, the quantised base with the adapters beside its matrices."""
        del some
        stays = lora.base_of(self.lora, abstract)
        base = self.base.load_params(stays, some=True, quantize=quantize or self.quantize)
        adapted = join(self.load_adapters(abstract), base)
        if quantize is not None:
            return adapted
        where = jax.tree.map(lambda x: x.sharding, abstract)
        return jax.jit(lambda tree: storage.plain(tree, abstract), out_shardings=where)(adapted)

    def matrix(self, path: str, layer: int | None) -> np.ndarray:
        found = leaf_at(self.load_params(llama.build(self.config).abstract_params), path.split("/"))
        return np.asarray(found if layer is None else found[layer])

    def _tensors(self) -> Iterator[np.ndarray]:
        """Yields the merged parameters a layer at a time, with the base's values rounded as they were in training."""
        full = self.quantize is not None and not isinstance(self.base, RunCheckpoint)
        tree = self.load_adapters(llama.build(self.config).abstract_params)
        base = self.base.tensors("float32" if full else self.config.param_dtype)
        own = {path_name(key): part for key, part in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_adapter)}
        merge = jax.jit(functools.partial(_merge, self.quantize or ((".*", None),)), static_argnums=0)
        for place, value in zip(tensors.places(self.config, tensors.HUGGING_FACE), base, strict=True):
            part = own.get(place.path)
            if place.layer is None:
                yield np.asarray(merge(place.path, value, part))
            else:  # a stack of one layer
                layer = jax.tree.map(lambda x, i=place.layer: x[i][None], part)
                yield np.asarray(merge(place.path, value[None], layer)[0])


class RunAdapters(AdapterCheckpoint, RunCheckpoint):
    """A checkpoint of a run of camelid's that trained adapters."""

    def __init__(
        self,
        path: epath.PathLike,
        folder: epath.Path,
        open: Open,
        weights: str | None = None,
        base: epath.PathLike | None = None,
    ):
        """Opens the adapters, not their base.

        Args:
          path: the path that the user gave.
          folder: the folder of the checkpoint that `reading.find(path)` returned.
          open: opens the base.
          weights: "params" or "ema"; None takes the moving average if the run kept one.
          base: path of the base model; None takes the base that the run was trained on.
        """
        super().__init__(path, folder, weights)
        described = self.manifest["adapter"]
        self.lora = Lora(**described["lora"])
        self.quantize = described.get("quantize")
        named = described["path"], described.get("weights", "params")
        self._open_base = functools.partial(open, *(named if base is None else (base, None)))

    @functools.cached_property
    def base(self) -> Checkpoint:
        return self._open_base()

    @property
    def own_tokenizer(self) -> Tokenizer | None:
        return self.tokenizer

    @property
    def own_template(self) -> ChatTemplate | None:
        return self.template

    def load_adapters(self, abstract: Any, *, score: Any = None) -> Any:
        asked = trained_shapes(self.lora, abstract)
        ours = {} if self.kind == "scalar" or "score" not in asked else {"score": score}
        asked = _placed_like({name: part for name, part in asked.items() if name not in ours}, abstract)
        return reading.load_part(self.folder, asked, self.inside, some=True) | ours

    def load_onto(self, abstract: Any, config: LlamaConfig, matrix: peft.Base) -> tuple[Lora, Any]:
        del config, matrix
        theirs = llama.build(self.config).abstract_params
        if jax.tree.map(jnp.shape, theirs) != jax.tree.map(jnp.shape, abstract):
            named = self.manifest["adapter"]["path"]
            raise UserError(f"{self.name} has adapters for {named}, whose matrices have other shapes than this model's")
        return self.lora, self.load_adapters(abstract)


class PEFTAdapters(AdapterCheckpoint):
    """Low-rank adapters in a folder of PEFT's format, read as a checkpoint; the base is opened when first needed."""

    format = "peft"

    def __init__(
        self, path: epath.PathLike, open: Open, weights: str | None = None, base: epath.PathLike | None = None
    ):
        """Opens the adapters, not their base.

        Args:
          path: the folder.
          open: opens the base.
          weights: "params" or None; PEFT keeps no moving average.
          base: path of the base model; None takes the one that the folder's config names.
        """
        super().__init__(path, weights)
        self._open, self._base = open, base
        self.own_tokenizer = tokenizer_in(self.path)
        self.own_template = template_of(self.own_tokenizer, self.title)

    @functools.cached_property
    def base(self) -> Checkpoint:
        if self._base is not None:
            if not _is_somewhere(self._base):
                raise UserError(f"base {self._base}: no such path")
            return self._open(self._base)
        with user_errors():
            named = peft.base_name(self.path)
        said = f"{self.path / peft.CONFIG} names the base {named!r:.200}"
        advice = "give --base=PATH to convert, chat, generate or eval, or put the path into base_model_name_or_path"
        if not isinstance(named, str) or not named or not _is_somewhere(named):
            raise UserError(f"{said}, which is no path on this machine: {advice}")
        try:
            return self._open(named)
        except UserError as error:
            if hub.name_of(named) is None:
                raise
            raise UserError(f"{said}. {error}. Or {advice}") from error

    @property
    def config(self) -> LlamaConfig:
        return self.base.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.own_tokenizer or self.base.tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        return self.own_template or self.base.template

    @property
    def generation(self) -> GenerationDefaults:
        return self.base.generation

    def _files(self) -> Iterable[epath.Path]:
        return self.path / peft.CONFIG, peft.weight_file(self.path)

    @functools.cached_property
    def _found(self) -> tuple[Lora, dict[str, Any]]:
        with user_errors():
            return peft.read_folder(self.path, self.config, self.base.matrix)

    @property
    def lora(self) -> Lora:
        return self._found[0]

    def load_adapters(self, abstract: Any, *, score: Any = None) -> Any:
        del score
        return _laid_out(self._found[1], trained_shapes(self.lora, abstract), abstract)

    def load_onto(self, abstract: Any, config: LlamaConfig, matrix: peft.Base) -> tuple[Lora, Any]:
        with user_errors():
            found, own = peft.read_folder(self.path, config, matrix)
            return found, _laid_out(own, trained_shapes(found, abstract), abstract)


def _is_somewhere(path: epath.PathLike) -> bool:
    """Whether there is something at a path, it is RUN@STEP, or it names a model on the Hub, which is not asked here."""
    there = epath.Path(path).expanduser().exists() or reading.run_and_step(path) is not None
    return there or hub.name_of(path) is not None


def trained_shapes(found: Lora, abstract: Any) -> Any:
    """The shapes of the parameters that a run with adapters trains: the adapters and what is trained whole.

    Args:
      found: which matrices have adapters.
      abstract: tree of shapes of the whole network without adapters.
    """
    everything = jax.eval_shape(lambda tree: lora.adapt(found, tree, abstract, jax.random.key(0)), abstract)
    return without(everything, lora.base_of(found, abstract))


def _laid_out(own: Any, asked: Any, abstract: Any) -> Any:
    """Puts trained numpy arrays onto the devices.

    Args:
      own: the tree of arrays.
      asked: the tree of their shapes and dtypes.
      abstract: the tree of the network's matrices, whose shardings they get.
    """
    placed = _placed_like(asked, abstract)
    return jax.tree.map(lambda x, to: jax.device_put(x.astype(to.dtype), to.sharding), own, placed)


def _placed_like(parts: Any, abstract: Any) -> Any:
    """The shapes of `parts`, adapters or whole matrices, with the shardings of their matrices in `abstract`."""
    plain = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}

    def one(key_path, leaf):
        matrix, names = matrix_of(path_name(key_path))
        where = plain[matrix].sharding
        if names and isinstance(where, NamedSharding):
            where = part_sharding(where, matrix, names, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(one, parts)


def _merge(quantize: Rules, path: str, value: jax.Array, own: Any) -> jax.Array:
    """Merges one parameter of the base with what was trained of it.

    Args:
      quantize: rules by which the base was quantised in training; the same rounding is applied first.
      path: of the parameter.
      value: the base's array.
      own: a dict of the parts of an adapter, an array that replaces `value`, or None if nothing was trained.
    """
    if own is not None and not is_adapter(own):
        return own
    kind = storage.kind_at(quantize, path)
    base = value if kind in (None, storage.STORED) else storage.encode(kind, path, value)
    return storage.plain_matrix(base if own is None else {"base": base} | own, path)
